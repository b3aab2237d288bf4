/* requires: dsp
   acc += w0 x0 + w1 x1 + w2 x2 + w3 x3 for a word of bytes w0, w2, w1, w3, lowest first: so that
   SXTB16 gives the pairs in the order of x. */
static inline int32_t rosler_dot_w8(int32_t acc, uint32_t w, const int16_t *x)
{
#if ROSLER_DSP
    uint32_t odd;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(w));
    acc = __smlad(__sxtb16((int8x4_t)w), (int16x2_t)rosler_load2(x), acc);
    return __smlad((int16x2_t)odd, (int16x2_t)rosler_load2(x + 2), acc);
#else
    return acc + (int32_t)(int8_t)(w & 0xFFu) * x[0] + (int32_t)(int8_t)((w >> 16) & 0xFFu) * x[1] +
           (int32_t)(int8_t)((w >> 8) & 0xFFu) * x[2] + (int32_t)(int8_t)(w >> 24) * x[3];
#endif
}
