/* requires: apply_f32
   y = finish(W x), rows of W one after another; four at a time share the loads of x. */
static void rosler_dense_f32(const float *x, int m, int n, const float *w,
                             const rosler_finish_f32 *f, float *y)
{
    const int blocked = n - n % 4;
    int i, j;
    for (j = 0; j < blocked; j += 4, w += 4 * m) {
        float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
        for (i = 0; i < m; ++i) {
            const float v = x[i];
            a += w[i] * v;
            b += w[m + i] * v;
            c += w[2 * m + i] * v;
            d += w[3 * m + i] * v;
        }
        y[j] = rosler_apply_f32(f, a, j);
        y[j + 1] = rosler_apply_f32(f, b, j + 1);
        y[j + 2] = rosler_apply_f32(f, c, j + 2);
        y[j + 3] = rosler_apply_f32(f, d, j + 3);
    }
    for (j = blocked; j < n; ++j, w += m) {
        float a = 0.0f;
        for (i = 0; i < m; ++i) {
            a += w[i] * x[i];
        }
        y[j] = rosler_apply_f32(f, a, j);
    }
}
