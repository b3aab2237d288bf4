/* requires: window_of, apply_@FINISH@
   y = finish(z S^T): every number of a window is its sum's. */
static void rosler_pooled_transpose_@S@(const @X@ *z, int height, int width, int channels, int high,
                                        int wide, const rosler_finish_@FINISH@ *f, @X@ *y)
{
    int i, j, c, n = 0;
    for (i = 0; i < height; ++i) {
        const int row = rosler_window_of(height, high, i) * wide;
        for (j = 0; j < width; ++j) {
            const int k = (row + rosler_window_of(width, wide, j)) * channels;
            for (c = 0; c < channels; ++c, ++n) {
                const @ACC@ v = z[k + c];
                y[n] = rosler_apply_@FINISH@(f, v, n);
            }
        }
    }
}
