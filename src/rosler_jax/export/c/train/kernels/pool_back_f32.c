/* requires: pixel
   Errors of pooling: `share` of each to all pixels of its window, or, if that is 0, the whole to the
   first of the largest. */
static void rosler_pool_back_f32(const float *x, const int32_t *axis, int axes, int channels,
                                 int32_t outputs, float share, const float *dy, float *dx)
{
    const int32_t pixels = rosler_pixels(axis, axes);
    int32_t output, pixel;
    int c;
    for (output = 0; output < outputs; ++output) {
        for (c = 0; c < channels; ++c, ++dy) {
            int32_t most = -1;
            for (pixel = 0; pixel < pixels; ++pixel) {
                const int32_t at = rosler_pixel(axis, axes, output, pixel) * channels + c;
                if (at < 0) { /* beyond the input */
                    continue;
                }
                if (share > 0.0f) {
                    dx[at] += share * *dy;
                } else if (most < 0 || x[at] > x[most]) {
                    most = at;
                }
            }
            if (most >= 0) {
                dx[most] += *dy;
            }
        }
    }
}
