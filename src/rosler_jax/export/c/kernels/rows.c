/* requires: rows_uniform, apply_@FINISH@
   y = finish(x S): sampled entries of x. */
static void rosler_rows_@S@(const @X@ *x, int rows, int cols, const uint32_t key[2],
                            const rosler_finish_@FINISH@ *f, @X@ *y)
{
    int j;
    for (j = 0; j < cols; ++j) {
        const @ACC@ v = x[rosler_sampled_row(key, (uint32_t)rows, (uint32_t)j)];
        y[j] = rosler_apply_@FINISH@(f, v, j);
    }
}
