/* requires: dsp */
static inline int64_t rosler_dot_w16_wide(int64_t acc, uint32_t w, const int16_t *x)
{
#if ROSLER_DSP
    return __smlald((int16x2_t)w, (int16x2_t)rosler_load2(x), acc);
#else
    return acc + (int32_t)(int16_t)(w & 0xFFFFu) * x[0] +
           (int64_t)((int32_t)(int16_t)(w >> 16) * x[1]);
#endif
}
