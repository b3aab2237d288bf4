/* requires: @COPY@
   Any window along any number of axes, gathered for one output of a group: channels first ..
   first + count - 1. Of each axis: sizes of input, output and window, stride, padding, and how far
   apart the window's pixels and the input's own lie. */
static void rosler_patch_axes_@S@(const @SOURCE@ *x, const int32_t *axis, int axes, int channels,
                                  int first, int count, int32_t output, @X@ *patch)
{
    int32_t pixels = 1, pixel;
    int a;
    for (a = 0; a < axes; ++a) {
        pixels *= axis[7 * a + 2];
    }
    for (pixel = 0; pixel < pixels; ++pixel, patch += count) {
        int32_t out = output, in_window = pixel, step = 1, offset = 0;
        for (a = axes - 1; a >= 0; --a) {
            const int32_t *s = axis + 7 * a;
            const int32_t i = (out % s[1]) * s[3] - s[4] + (in_window % s[2]) * s[5];
            if (i < 0 || i % s[6] || i / s[6] >= s[0]) {
                break;
            }
            offset += i / s[6] * step;
            step *= s[0];
            out /= s[1];
            in_window /= s[2];
        }
        if (a >= 0) {
            rosler_zero_@S@(patch, count);
        } else {
            rosler_copy_@S@(x + offset * channels + first, count, patch);
        }
    }
}
