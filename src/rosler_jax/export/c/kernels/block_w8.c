/* requires: dot_w8
   acc += four rows, word by word: what a product spends its time in. On a DSP core one LDM brings the
   words of four rows, two words of each in a turn. A function apart, since it takes nearly all
   registers: r4 to r8 hold weights, r9 to r11 and lr sums, r12 a pair of inputs. */
#if ROSLER_DSP
#define ROSLER_BYTES                        \
    "ldmia %[w]!, {r4, r5, r6, r8}\n\t"     \
    "ldr r12, [%[x]], #4\n\t"               \
    "sxtb16 %[acc], r4\n\t"                 \
    "smlad r9, %[acc], r12, r9\n\t"         \
    "sxtb16 %[acc], r5\n\t"                 \
    "smlad r10, %[acc], r12, r10\n\t"       \
    "sxtb16 %[acc], r6\n\t"                 \
    "smlad r11, %[acc], r12, r11\n\t"       \
    "sxtb16 %[acc], r8\n\t"                 \
    "smlad lr, %[acc], r12, lr\n\t"         \
    "ldr r12, [%[x]], #4\n\t"               \
    "sxtb16 r4, r4, ror #8\n\t"             \
    "smlad r9, r4, r12, r9\n\t"             \
    "sxtb16 r5, r5, ror #8\n\t"             \
    "smlad r10, r5, r12, r10\n\t"           \
    "sxtb16 r6, r6, ror #8\n\t"             \
    "smlad r11, r6, r12, r11\n\t"           \
    "sxtb16 r8, r8, ror #8\n\t"             \
    "smlad lr, r8, r12, lr\n\t"
#endif

ROSLER_APART const uint32_t *rosler_block_w8(const int16_t *x, int words, const uint32_t *w,
                                             int32_t acc[4])
{
#if ROSLER_DSP
    __asm__ volatile("ldmia %[acc], {r9, r10, r11, lr}\n\t"
                     "push {%[acc]}\n\t"
                     "subs %[words], #2\n\t"
                     "blt 2f\n"
                     "1:\n\t" ROSLER_BYTES ROSLER_BYTES
                     "subs %[words], #2\n\t"
                     "bge 1b\n"
                     "2:\n\t"
                     "adds %[words], #2\n\t"
                     "beq 3f\n\t" ROSLER_BYTES
                     "3:\n\t"
                     "pop {%[acc]}\n\t"
                     "stmia %[acc], {r9, r10, r11, lr}"
                     : [w] "+r"(w), [x] "+r"(x), [words] "+r"(words), [acc] "+r"(acc)
                     :
                     : "r4", "r5", "r6", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
#else
    for (; words > 0; --words, w += 4, x += 4) {
        acc[0] = rosler_dot_w8(acc[0], w[0], x);
        acc[1] = rosler_dot_w8(acc[1], w[1], x);
        acc[2] = rosler_dot_w8(acc[2], w[2], x);
        acc[3] = rosler_dot_w8(acc[3], w[3], x);
    }
#endif
    return w;
}
