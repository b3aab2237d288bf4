/* Puts a weight where rosler_dense_f32 reads it. */
static inline void rosler_put_f32(float *w, int m, int n, int i, int j, int32_t v)
{
    (void)n;
    w[j * m + i] = (float)v;
}

static inline void rosler_clear_f32(float *w, int m, int n)
{
    int i;
    for (i = 0; i < m * n; ++i) {
        w[i] = 0.0f;
    }
}
