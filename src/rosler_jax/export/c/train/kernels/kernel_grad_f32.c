/* requires: pixel
   Adds the gradient of a kernel (pixels, count, n), from input and error. */
static void rosler_kernel_grad_f32(const float *x, const int32_t *axis, int axes, int groups,
                                   int count, int32_t outputs, int n, const float *d, float *w)
{
    const int32_t pixels = rosler_pixels(axis, axes);
    const int each = n / groups;
    int32_t output, pixel;
    int g, c, j;
    for (output = 0; output < outputs; ++output, d += n) {
        for (pixel = 0; pixel < pixels; ++pixel) {
            const int32_t at = rosler_pixel(axis, axes, output, pixel);
            for (g = 0; at >= 0 && g < groups; ++g) {
                const float *from = x + (at * groups + g) * count;
                for (c = 0; c < count; ++c) {
                    float *row = w + (pixel * count + c) * n + g * each;
                    for (j = 0; j < each; ++j) {
                        row[j] += from[c] * d[g * each + j];
                    }
                }
            }
        }
    }
}
