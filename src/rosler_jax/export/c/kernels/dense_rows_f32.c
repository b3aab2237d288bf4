/* requires: dense_f32
   y = finish(W x) for every row of x; two rows at a time share the loads of W. */
static void rosler_dense_rows_f32(const float *x, int rows, int m, int n, const float *w,
                                  const rosler_finish_f32 *f, float *y)
{
    const int blocked = n - n % 4;
    int i, j;
    for (; rows > 1; rows -= 2, x += 2 * m, y += 2 * n) {
        const float *v = w, *z = x + m;
        for (j = 0; j < blocked; j += 4, v += 4 * m) {
            float a = 0.0f, b = 0.0f, c = 0.0f, d = 0.0f, e = 0.0f, g = 0.0f, h = 0.0f, k = 0.0f;
            for (i = 0; i < m; ++i) {
                const float p = x[i], q = z[i];
                a += v[i] * p;
                e += v[i] * q;
                b += v[m + i] * p;
                g += v[m + i] * q;
                c += v[2 * m + i] * p;
                h += v[2 * m + i] * q;
                d += v[3 * m + i] * p;
                k += v[3 * m + i] * q;
            }
            y[j] = rosler_apply_f32(f, a, j);
            y[j + 1] = rosler_apply_f32(f, b, j + 1);
            y[j + 2] = rosler_apply_f32(f, c, j + 2);
            y[j + 3] = rosler_apply_f32(f, d, j + 3);
            y[n + j] = rosler_apply_f32(f, e, j);
            y[n + j + 1] = rosler_apply_f32(f, g, j + 1);
            y[n + j + 2] = rosler_apply_f32(f, h, j + 2);
            y[n + j + 3] = rosler_apply_f32(f, k, j + 3);
        }
        for (j = blocked; j < n; ++j, v += m) {
            float a = 0.0f, e = 0.0f;
            for (i = 0; i < m; ++i) {
                a += v[i] * x[i];
                e += v[i] * z[i];
            }
            y[j] = rosler_apply_f32(f, a, j);
            y[n + j] = rosler_apply_f32(f, e, j);
        }
    }
    if (rows > 0) {
        rosler_dense_f32(x, m, n, w, f, y);
    }
}
