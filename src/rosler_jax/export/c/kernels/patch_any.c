/* requires: @COPY@
   Any window: pixels step_y, step_x apart on an image whose own pixels lie gap_y, gap_x apart, and
   channels first .. first + count - 1 of it. */
static inline void rosler_patch_any_@S@(const @SOURCE@ *x, int height, int width, int channels, int first,
                                        int count, int top, int left, int rows, int cols, int step_y,
                                        int step_x, int gap_y, int gap_x, @X@ *patch)
{
    int k, l;
    for (k = 0; k < rows; ++k) {
        for (l = 0; l < cols; ++l, patch += count) {
            const int i = top + k * step_y, j = left + l * step_x;
            if (i < 0 || j < 0 || i % gap_y || j % gap_x || i / gap_y >= height ||
                j / gap_x >= width) {
                rosler_zero_@S@(patch, count);
            } else {
                rosler_copy_@S@(x + ((i / gap_y) * width + j / gap_x) * channels + first, count,
                                patch);
            }
        }
    }
}
