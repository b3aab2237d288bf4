/* requires: spread
   acc = start + a row of weights times each of a tile's four pixels: each weight is widened once.
   Words hold four weights in order. A function apart, since it takes nearly all registers: r4, r5,
   r6 and r12 hold inputs, r8 to r11 sums, lr weights. */
#if ROSLER_DSP
#define ROSLER_FOUR                       \
    "ldr %[acc], [%[w]], #4\n\t"          \
    "ldmia %[x]!, {r4, r5, r6, r12}\n\t"  \
    "sxtb16 lr, %[acc]\n\t"               \
    "smlad r8, lr, r4, r8\n\t"            \
    "smlad r9, lr, r5, r9\n\t"            \
    "smlad r10, lr, r6, r10\n\t"          \
    "smlad r11, lr, r12, r11\n\t"         \
    "ldmia %[x]!, {r4, r5, r6, r12}\n\t"  \
    "sxtb16 lr, %[acc], ror #8\n\t"       \
    "smlad r8, lr, r4, r8\n\t"            \
    "smlad r9, lr, r5, r9\n\t"            \
    "smlad r10, lr, r6, r10\n\t"          \
    "smlad r11, lr, r12, r11\n\t"
#endif

ROSLER_APART const uint32_t *rosler_tile_dot(const rosler_slot *x, int words, const uint32_t *w,
                                             int32_t acc[4])
{
#if ROSLER_DSP
    __asm__ volatile("ldmia %[acc], {r8, r9, r10, r11}\n\t"
                     "push {%[acc]}\n\t"
                     "subs %[words], #4\n\t"
                     "blt 2f\n"
                     "1:\n\t" ROSLER_FOUR ROSLER_FOUR ROSLER_FOUR ROSLER_FOUR
                     "subs %[words], #4\n\t"
                     "bge 1b\n"
                     "2:\n\t"
                     "adds %[words], #4\n\t"
                     "beq 4f\n"
                     "3:\n\t" ROSLER_FOUR
                     "subs %[words], #1\n\t"
                     "bne 3b\n"
                     "4:\n\t"
                     "pop {%[acc]}\n\t"
                     "stmia %[acc], {r8, r9, r10, r11}"
                     : [w] "+r"(w), [x] "+r"(x), [words] "+r"(words), [acc] "+r"(acc)
                     :
                     : "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
#else
    for (; words > 0; --words, ++w, x += 4) {
        const int16_t *v = x->pixel;
        int k, p;
        for (k = 0; k < 4; ++k) {
            const int32_t weight = (int8_t)((*w >> (8 * k)) & 0xFFu);
            for (p = 0; p < 4; ++p) {
                acc[p] += weight * v[8 * (k % 2) + 2 * p + k / 2];
            }
        }
    }
#endif
    return w;
}
