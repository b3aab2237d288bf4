/* requires: dsp
   Limits of 16 bits, or of 15 where a relu is fused; right shifts of negative numbers keep their
   sign with every compiler known. */
typedef char rosler_shifts_keep_the_sign[(-1 >> 1) == -1 ? 1 : -1];

static inline int16_t rosler_clip(int32_t y, int relu)
{
#if ROSLER_DSP
    if (relu) {
        __asm__("usat %0, #15, %1" : "=r"(y) : "r"(y));
    } else {
        __asm__("ssat %0, #16, %1" : "=r"(y) : "r"(y));
    }
    return (int16_t)y;
#else
    const int32_t low = relu ? 0 : -32768;
    return (int16_t)(y < low ? low : y > 32767 ? 32767 : y);
#endif
}
