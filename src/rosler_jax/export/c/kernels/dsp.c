/* Pairs of 16-bit products, and saturation: one instruction where the core has it, the same numbers
   where not. */
#if defined(__ARM_FEATURE_DSP) && !defined(__ARM_BIG_ENDIAN) && !defined(ROSLER_NO_DSP)
#include <arm_acle.h>
#define ROSLER_DSP 1
static inline uint32_t rosler_load2(const int16_t *x)
{
    uint32_t pair;
    memcpy(&pair, x, sizeof pair);
    return pair;
}
#else
#define ROSLER_DSP 0
#endif

/* Kernels are written out where they are called: sizes are constants there. */
#if defined(__GNUC__)
#define ROSLER_INLINE static inline __attribute__((always_inline))
#define ROSLER_APART static __attribute__((noinline))
#else
#define ROSLER_INLINE static inline
#define ROSLER_APART static
#endif
