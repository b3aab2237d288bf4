/* Where a pixel of a window lies on an image of any number of axes, for one output; -1 for beyond it.
   Of each axis: sizes of input, output and window, stride, padding, and how far apart the window's
   pixels and the input's own lie. */
static inline int32_t rosler_pixel(const int32_t *axis, int axes, int32_t output, int32_t pixel)
{
    int32_t step = 1, offset = 0;
    int a;
    for (a = axes - 1; a >= 0; --a) {
        const int32_t *s = axis + 7 * a;
        const int32_t i = (output % s[1]) * s[3] - s[4] + (pixel % s[2]) * s[5];
        if (i < 0 || i % s[6] || i / s[6] >= s[0]) {
            return -1;
        }
        offset += i / s[6] * step;
        step *= s[0];
        output /= s[1];
        pixel /= s[2];
    }
    return offset;
}

static inline int32_t rosler_pixels(const int32_t *axis, int axes)
{
    int32_t pixels = 1;
    int a;
    for (a = 0; a < axes; ++a) {
        pixels *= axis[7 * a + 2];
    }
    return pixels;
}
