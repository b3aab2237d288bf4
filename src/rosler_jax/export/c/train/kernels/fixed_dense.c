/* requires: fixed_round, fixed_clip@HALF@
   y = x W + b, rows of W one after another. */
static void rosler_fixed_dense_@K@(const int16_t *x, int m, int n, const @T@ *w, const int32_t *bias,
                                   int up, int shift, int16_t *y)
{
    int i, j;
    for (j = 0; j < n; ++j, w += m) {
        int64_t acc = bias ? bias[j] * ((int64_t)1 << up) : 0;
        for (i = 0; i < m; ++i) {
            acc += (int32_t)x[i] * @GET@(w[i]);
        }
        y[j] = rosler_fixed_clip(rosler_fixed_round(acc, shift));
    }
}
