/* y = x w, rows of w (k, n) as they are; four columns at a time share the loads of x. */
static void rosler_matmul_f32(const float *x, int m, int k, int n, const float *w, float *y)
{
    int i, j, r;
    for (r = 0; r < m; ++r, x += k, y += n) {
        for (j = 0; j + 4 <= n; j += 4) {
            const float *v = w + j;
            float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f;
            for (i = 0; i < k; ++i, v += n) {
                a += x[i] * v[0];
                b += x[i] * v[1];
                c += x[i] * v[2];
                d += x[i] * v[3];
            }
            y[j] = a;
            y[j + 1] = b;
            y[j + 2] = c;
            y[j + 3] = d;
        }
        for (; j < n; ++j) {
            float a = 0.0f;
            for (i = 0; i < k; ++i) {
                a += x[i] * w[i * n + j];
            }
            y[j] = a;
        }
    }
}
