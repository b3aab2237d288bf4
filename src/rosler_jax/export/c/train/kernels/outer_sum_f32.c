/* y += sum of outer products of `length` pairs of vectors, each with a stride of its own. */
static void rosler_outer_sum_f32(const float *x, const float *w, int length, int m, int n,
                                 int x_step, int x_stride, int w_step, int w_stride, float *y)
{
    int t, i, j;
    for (t = 0; t < length; ++t, x += x_step, w += w_step) {
        for (i = 0; i < m; ++i) {
            const float v = x[i * x_stride];
            for (j = 0; v != 0.0f && j < n; ++j) {
                y[i * n + j] += v * w[j * w_stride];
            }
        }
    }
}
