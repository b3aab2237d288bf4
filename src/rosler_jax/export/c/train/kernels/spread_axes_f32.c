/* requires: pixel
   The transpose of gathering: adds a window's errors to those of the image. */
static void rosler_spread_axes_f32(const float *patch, const int32_t *axis, int axes, int channels,
                                   int first, int count, int32_t output, float *dx)
{
    const int32_t pixels = rosler_pixels(axis, axes);
    int32_t pixel;
    int c;
    for (pixel = 0; pixel < pixels; ++pixel, patch += count) {
        const int32_t offset = rosler_pixel(axis, axes, output, pixel);
        if (offset >= 0) {
            float *to = dx + offset * channels + first;
            for (c = 0; c < count; ++c) {
                to[c] += patch[c];
            }
        }
    }
}
