/* g += rate d x^T, rows of g one after another. */
static void rosler_outer_f32(const float *d, int n, const float *x, int m, float rate, float *g)
{
    int i, j;
    for (j = 0; j < n; ++j, g += m) {
        const float v = rate * d[j];
        if (v != 0.0f) {
            for (i = 0; i < m; ++i) {
                g[i] += v * x[i];
            }
        }
    }
}
