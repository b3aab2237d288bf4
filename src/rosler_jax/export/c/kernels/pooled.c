/* requires: window_start, apply_@FINISH@
   y = finish(x S), S sums over windows side by side. */
static void rosler_pooled_@S@(const @X@ *x, int height, int width, int channels, int high, int wide,
                              const rosler_finish_@FINISH@ *f, @X@ *y)
{
    int a, b, c, i, j, n = 0;
    for (a = 0; a < high; ++a) {
        for (b = 0; b < wide; ++b) {
            const int bottom = rosler_window_start(height, high, a + 1);
            const int right = rosler_window_start(width, wide, b + 1);
            for (c = 0; c < channels; ++c, ++n) {
                @ACC@ acc = 0;
                for (i = rosler_window_start(height, high, a); i < bottom; ++i) {
                    for (j = rosler_window_start(width, wide, b); j < right; ++j) {
                        acc += (@ACC@)x[(i * width + j) * channels + c];
                    }
                }
                y[n] = rosler_apply_@FINISH@(f, acc, n);
            }
        }
    }
}
