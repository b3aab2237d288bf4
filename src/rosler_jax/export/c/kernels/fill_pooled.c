/* requires: window_of, put_@S@
   Sums over windows as weights. */
static void rosler_fill_pooled_@S@(int height, int width, int channels, int high, int wide, int rows,
                                   int cols, @W@ *w)
{
    int i, j, c, n = 0;
    rosler_clear_@S@(w, rows, cols);
    for (i = 0; i < height; ++i) {
        const int row = rosler_window_of(height, high, i) * wide;
        for (j = 0; j < width; ++j) {
            const int k = (row + rosler_window_of(width, wide, j)) * channels;
            for (c = 0; c < channels; ++c, ++n) {
                rosler_put_@S@(w, rows, cols, n, k + c, 1);
            }
        }
    }
}
