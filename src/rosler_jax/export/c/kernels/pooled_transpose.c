/* requires: window_start, apply_@FINISH@
   y = finish(z S^T): every number of a window is its sum's. */
static void rosler_pooled_transpose_@S@(const @X@ *z, int height, int width, int channels, int high,
                                        int wide, const rosler_finish_@FINISH@ *f, @X@ *y)
{
    int a, b, c, i, j;
    for (a = 0; a < high; ++a) {
        for (b = 0; b < wide; ++b) {
            const int bottom = rosler_window_start(height, high, a + 1);
            const int right = rosler_window_start(width, wide, b + 1);
            for (i = rosler_window_start(height, high, a); i < bottom; ++i) {
                for (j = rosler_window_start(width, wide, b); j < right; ++j) {
                    for (c = 0; c < channels; ++c) {
                        const int n = (i * width + j) * channels + c;
                        const @ACC@ v = z[(a * wide + b) * channels + c];
                        y[n] = rosler_apply_@FINISH@(f, v, n);
                    }
                }
            }
        }
    }
}
