/* requires: @COPY@, pixel
   Any window along any number of axes, gathered for one output of a group: channels first ..
   first + count - 1. */
static void rosler_patch_axes_@S@(const @SOURCE@ *x, const int32_t *axis, int axes, int channels,
                                  int first, int count, int32_t output, @X@ *patch)
{
    const int32_t pixels = rosler_pixels(axis, axes);
    int32_t pixel;
    for (pixel = 0; pixel < pixels; ++pixel, patch += count) {
        const int32_t offset = rosler_pixel(axis, axes, output, pixel);
        if (offset < 0) {
            rosler_zero_@S@(patch, count);
        } else {
            rosler_copy_@S@(x + offset * channels + first, count, patch);
        }
    }
}
