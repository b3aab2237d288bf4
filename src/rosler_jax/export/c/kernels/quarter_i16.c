/* q[k] = cos(pi k / (2 n)) for k = 0 .. n and then sqrt(1/2), in units of 2^-bits. */
static inline void rosler_quarter_i16(int n, int bits, int16_t *q)
{
    static const int32_t more[4] = {22348826, 272358059, 1324674085, 1073741824};
    int j, k;
    for (k = 0; k <= n; ++k) {
        const int32_t t = (int32_t)((((uint32_t)k << 15) + (uint32_t)n / 2) / (uint32_t)n);
        int32_t p = 923085;
        for (j = 0; j < 4; ++j) {
            p = more[j] - (int32_t)(((int64_t)p * (t * t)) >> 30);
        }
        q[k] = (int16_t)((p + (1 << (29 - bits))) >> (30 - bits));
    }
    q[n + 1] = (int16_t)(((46341 >> (15 - bits)) + 1) >> 1);
}

static inline int16_t rosler_middle_i16(int32_t acc, int shift)
{
    return (int16_t)((acc + (1 << (shift - 1))) >> shift);
}
