/* q[k] = cos(pi k / (2 n)) for k = 0 .. n, and then sqrt(1/2). */
typedef float rosler_wide_f32;

static inline void rosler_quarter_f32(int n, float *q)
{
    int k;
    for (k = 0; k <= n; ++k) {
        const float t = (float)k / (float)n, s = t * t;
        q[k] = 1.0f - s * (1.23369888f - s * (0.253653209f - s * (0.0208139665f - s * 8.59689994e-4f)));
    }
    q[n + 1] = 0.707106781f;
}

static inline float rosler_narrowed_f32(float acc, int shift)
{
    (void)shift;
    return acc;
}
