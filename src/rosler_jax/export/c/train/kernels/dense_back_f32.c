/* x = W^T d for rows of W one after another; outputs that a relu switched off cost nothing. */
static void rosler_dense_back_f32(const float *d, int m, int n, const float *w, float *x)
{
    int i, j;
    for (i = 0; i < m; ++i) {
        x[i] = 0.0f;
    }
    for (j = 0; j < n; ++j, w += m) {
        const float v = d[j];
        if (v != 0.0f) {
            for (i = 0; i < m; ++i) {
                x[i] += w[i] * v;
            }
        }
    }
}
