/* requires: dsp
   Limits: 0 those of 16 bits, 1 of 15 where a relu is fused, 2 of 8 bits; right shifts of negative
   numbers keep their sign with every compiler known. */
typedef char rosler_shifts_keep_the_sign[(-1 >> 1) == -1 ? 1 : -1];

static inline int16_t rosler_clip(int32_t y, int limits)
{
#if ROSLER_DSP
    if (limits == 0) {
        __asm__("ssat %0, #16, %1" : "=r"(y) : "r"(y));
    } else if (limits == 1) {
        __asm__("usat %0, #15, %1" : "=r"(y) : "r"(y));
    } else {
        __asm__("ssat %0, #8, %1" : "=r"(y) : "r"(y));
    }
    return (int16_t)y;
#else
    const int32_t low = limits == 2 ? -128 : limits ? 0 : -32768, high = limits == 2 ? 127 : 32767;
    return (int16_t)(y < low ? low : y > high ? high : y);
#endif
}
