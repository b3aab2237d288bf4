/* requires: @FAMILY@, apply_@FINISH@
   y = finish(z S^T) for a sparse S. */
static void rosler_gather_@FAMILY@_@S@(const @X@ *z, int rows, uint32_t entries,
                                       const rosler_@FAMILY@ *s, const rosler_finish_@FINISH@ *f,
                                       @X@ *y)
{
    uint32_t negative, t;
    int i;
    for (i = 0; i < rows; ++i) {
        @ACC@ acc = 0;
        for (t = 0; t < entries; ++t) {
            const uint32_t column = rosler_@FAMILY@_entry(s, (uint32_t)i, t, &negative);
            acc += negative ? -(@ACC@)z[column] : (@ACC@)z[column];
        }
        y[i] = rosler_apply_@FINISH@(f, acc, i);
    }
}
