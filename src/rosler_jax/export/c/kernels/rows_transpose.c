/* requires: rows_uniform, apply_@FINISH@
   y = finish(z S^T): added to where they were sampled from. */
static void rosler_rows_transpose_@S@(const @X@ *z, int rows, int cols, const uint32_t key[2],
                                      @ACC@ *buffer, const rosler_finish_@FINISH@ *f, @X@ *y)
{
    int i, j;
    for (i = 0; i < rows; ++i) {
        buffer[i] = 0;
    }
    for (j = 0; j < cols; ++j) {
        buffer[rosler_sampled_row(key, (uint32_t)rows, (uint32_t)j)] += (@ACC@)z[j];
    }
    for (i = 0; i < rows; ++i) {
        y[i] = rosler_apply_@FINISH@(f, buffer[i], i);
    }
}
