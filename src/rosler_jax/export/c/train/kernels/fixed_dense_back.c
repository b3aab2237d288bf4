/* requires: fixed_round@HALF@
   t = W^T d, down a column of W: no memory for sums of 64 bits. */
static void rosler_fixed_dense_back_@K@(const int16_t *d, int m, int n, const @T@ *w, int shift,
                                        int32_t *t)
{
    int i, j;
    for (i = 0; i < m; ++i, ++w) {
        const @T@ *column = w;
        int64_t acc = 0;
        for (j = 0; j < n; ++j, column += m) {
            acc += (int32_t)d[j] * @GET@(*column);
        }
        t[i] = (int32_t)rosler_fixed_round(acc, shift);
    }
}
