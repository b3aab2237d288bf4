/* v += d x^T 2^-shift, rounded and saturated, rows of v one after another. */
static inline int32_t rosler_fixed_add(int32_t v, int64_t step)
{
    const int64_t sum = v + step;
    return (int32_t)(sum < INT32_MIN ? INT32_MIN : sum > INT32_MAX ? INT32_MAX : sum);
}

static void rosler_fixed_outer(const int16_t *d, int n, const int16_t *x, int m, int shift,
                               int32_t *v)
{
    int i, j;
    if (shift > 30) {
        return;
    }
    for (j = 0; j < n; ++j, v += m) {
        const int32_t factor = d[j];
        if (factor != 0 && shift > 0) {
            const int32_t half = (int32_t)1 << (shift - 1);
            for (i = 0; i < m; ++i) {
                v[i] = rosler_fixed_add(v[i], (factor * x[i] + half) >> shift);
            }
        } else if (factor != 0) {
            const int64_t up = (int64_t)1 << (shift < -30 ? 30 : -shift);
            for (i = 0; i < m; ++i) {
                v[i] = rosler_fixed_add(v[i], factor * x[i] * up);
            }
        }
    }
}
