/* requires: dsp, nibble
   acc += w0 x0 + .. + w7 x7 for a word of nibbles w + 8 in the order 0 2 4 6 1 3 5 7, lowest first.
   The DSP path leaves the 8 in: it adds 8 (x0 + .. + x7) too much, which the caller takes off; sums
   wrap meanwhile, as the instructions do. */
static inline int32_t rosler_dot_w4(int32_t acc, uint32_t w, const int16_t *x)
{
#if ROSLER_DSP
    acc = __smlad((int16x2_t)(w & 0x000F000Fu), (int16x2_t)rosler_load2(x), acc);
    acc = __smlad((int16x2_t)((w >> 4) & 0x000F000Fu), (int16x2_t)rosler_load2(x + 2), acc);
    acc = __smlad((int16x2_t)((w >> 8) & 0x000F000Fu), (int16x2_t)rosler_load2(x + 4), acc);
    return __smlad((int16x2_t)((w >> 12) & 0x000F000Fu), (int16x2_t)rosler_load2(x + 6), acc);
#else
    int k;
    for (k = 0; k < 4; ++k) {
        acc += rosler_nibble(w, k) * x[2 * k] + rosler_nibble(w, k + 4) * x[2 * k + 1];
    }
    return acc;
#endif
}

/* What the DSP path's sums start from: -8 (x0 + x1 + ..). */
static inline int32_t rosler_start_w4(const int16_t *x, int m)
{
#if ROSLER_DSP
    int32_t sum = 0;
    int i;
    for (i = 0; i < m; i += 2) {
        sum = __smlad((int16x2_t)0x00010001, (int16x2_t)rosler_load2(x + i), sum);
    }
    return (int32_t)(0u - 8u * (uint32_t)sum);
#else
    (void)x;
    (void)m;
    return 0;
#endif
}
