/* requires: @FAMILY@, apply_@FINISH@
   y = finish(x S) for a sparse S. */
static void rosler_scatter_@FAMILY@_@S@(const @X@ *x, int rows, int cols, uint32_t entries,
                                        const rosler_@FAMILY@ *s, @ACC@ *buffer,
                                        const rosler_finish_@FINISH@ *f, @X@ *y)
{
    uint32_t negative, t;
    int i, j;
    for (j = 0; j < cols; ++j) {
        buffer[j] = 0;
    }
    for (i = 0; i < rows; ++i) {
        for (t = 0; t < entries; ++t) {
            const uint32_t column = rosler_@FAMILY@_entry(s, (uint32_t)i, t, &negative);
            buffer[column] += negative ? -(@ACC@)x[i] : (@ACC@)x[i];
        }
    }
    for (j = 0; j < cols; ++j) {
        y[j] = rosler_apply_@FINISH@(f, buffer[j], j);
    }
}
