/* q[k] = cos(pi k / (2 n)) for k = 0 .. n, and then sqrt(1/2), in units of 2^-14. */
typedef int64_t rosler_wide_i16;

static inline void rosler_quarter_i16(int n, int16_t *q)
{
    static const int32_t more[4] = {22348826, 272358059, 1324674085, 1073741824};
    int j, k;
    for (k = 0; k <= n; ++k) {
        const int32_t t = (int32_t)((((uint32_t)k << 15) + (uint32_t)n / 2) / (uint32_t)n);
        int32_t p = 923085;
        for (j = 0; j < 4; ++j) {
            p = more[j] - (int32_t)(((int64_t)p * (t * t)) >> 30);
        }
        q[k] = (int16_t)((p + 32768) >> 16);
    }
    q[n + 1] = 11585;
}

static inline int32_t rosler_narrowed_i16(int64_t acc, int shift)
{
    return (int32_t)((acc + ((int64_t)1 << (shift - 1))) >> shift);
}
