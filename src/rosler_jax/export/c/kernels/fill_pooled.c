/* requires: window_start, put_@S@
   Sums over windows as weights. */
static void rosler_fill_pooled_@S@(int height, int width, int channels, int high, int wide, int rows,
                                   int cols, @W@ *w)
{
    int a, b, c, i, j;
    rosler_clear_@S@(w, rows, cols);
    for (a = 0; a < high; ++a) {
        for (b = 0; b < wide; ++b) {
            const int bottom = rosler_window_start(height, high, a + 1);
            const int right = rosler_window_start(width, wide, b + 1);
            for (i = rosler_window_start(height, high, a); i < bottom; ++i) {
                for (j = rosler_window_start(width, wide, b); j < right; ++j) {
                    for (c = 0; c < channels; ++c) {
                        rosler_put_@S@(w, rows, cols, (i * width + j) * channels + c,
                                       (a * wide + b) * channels + c, 1);
                    }
                }
            }
        }
    }
}
