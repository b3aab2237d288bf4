/* requires: dsp
   acc += w0 x0 + w1 x1 for a word that holds w0 in its lower half. */
static inline int32_t rosler_dot_w16(int32_t acc, uint32_t w, const int16_t *x)
{
#if ROSLER_DSP
    return __smlad((int16x2_t)w, (int16x2_t)rosler_load2(x), acc);
#else
    return acc + (int32_t)(int16_t)(w & 0xFFFFu) * x[0] + (int32_t)(int16_t)(w >> 16) * x[1];
#endif
}
