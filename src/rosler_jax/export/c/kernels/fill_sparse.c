/* requires: @FAMILY@, put_@S@
   The signs of a sparse sketch as weights. */
static void rosler_fill_@FAMILY@_@S@(const rosler_@FAMILY@ *s, uint32_t entries, int rows, int cols,
                                     @W@ *w)
{
    uint32_t negative, t;
    int i;
    rosler_clear_@S@(w, rows, cols);
    for (i = 0; i < rows; ++i) {
        for (t = 0; t < entries; ++t) {
            const uint32_t j = rosler_@FAMILY@_entry(s, (uint32_t)i, t, &negative);
            rosler_put_@S@(w, rows, cols, i, (int)j, negative ? -1 : 1);
        }
    }
}
