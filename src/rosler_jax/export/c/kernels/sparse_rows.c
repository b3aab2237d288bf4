/* requires: sparse
   The same for every row of x, m numbers each; two rows at a time share the entries. */
static void rosler_sparse_rows_@S@(const @X@ *x, int rows, int m, int n, const @ENTRY@ *entries,
                                   const @COUNT@ *count, int bits,
                                   @MORE@const rosler_finish_@FINISH@ *f, @Y@ *y)
{
    const int up = 32 - bits;
    int j, k;
    for (; rows > 1; rows -= 2, x += 2 * m, y += 2 * n) {
        const @ENTRY@ *entry = entries;
        for (j = 0; j < n; ++j) {
            @ACC@ a = 0, b = 0;
            const @X@ *at = x;
            for (k = count[j]; k > 0; --k) {
                const uint32_t e = *entry++;
                @ACC@ w;
                at += e >> bits;
                w = @WEIGHT@;
                a += w * *at;
                b += w * at[m];
                ++at;
            }
            y[j] = (@Y@)rosler_apply_@FINISH@(f, a, j);
            y[n + j] = (@Y@)rosler_apply_@FINISH@(f, b, j);
        }
    }
    if (rows > 0) {
        rosler_sparse_@S@(x, n, entries, count, bits, @PASSED@f, y);
    }
}
