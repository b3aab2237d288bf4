/* requires: rows_uniform, put_@S@
   A uniform row sample as weights. */
static void rosler_fill_rows_@S@(const uint32_t key[2], int rows, int cols, @W@ *w)
{
    int j;
    rosler_clear_@S@(w, rows, cols);
    for (j = 0; j < cols; ++j) {
        const uint32_t i = rosler_sampled_row(key, (uint32_t)rows, (uint32_t)j);
        rosler_put_@S@(w, rows, cols, (int)i, j, 1);
    }
}
