/* requires: dot_w16
   Blocks of four rows, word by word: what dense spends its time in. On a DSP core one LDM brings the
   words of four rows; four words of each in a turn, so that few branches are taken. */
#if ROSLER_DSP
#define ROSLER_TURN                             \
    "ldmia %[w]!, {r4, r5, r6, r8}\n\t"         \
    "ldr %[pair], [%[x]], #4\n\t"               \
    "smlad %[a], r4, %[pair], %[a]\n\t"         \
    "smlad %[b], r5, %[pair], %[b]\n\t"         \
    "smlad %[c], r6, %[pair], %[c]\n\t"         \
    "smlad %[d], r8, %[pair], %[d]\n\t"
#endif

ROSLER_APART const uint32_t *rosler_blocks_w16(const int16_t *x, int m, int blocks,
                                               const uint32_t *w, int32_t start,
                                               const int32_t *bias, int32_t *acc)
{
    for (; blocks > 0; --blocks, acc += 4) {
        const int16_t *p = x;
        int32_t a = start, b = start, c = start, d = start;
        int words = m / 2;
        if (bias) {
            a += *bias++;
            b += *bias++;
            c += *bias++;
            d += *bias++;
        }
#if ROSLER_DSP
        if (words >= 4) {
            int turns = words / 4;
            uint32_t pair;
            __asm__("1:\n\t" ROSLER_TURN ROSLER_TURN ROSLER_TURN
                    "subs %[turns], #1\n\t" ROSLER_TURN "bne 1b"
                    : [w] "+r"(w), [x] "+r"(p), [turns] "+r"(turns), [pair] "=&r"(pair),
                      [a] "+r"(a), [b] "+r"(b), [c] "+r"(c), [d] "+r"(d)
                    :
                    : "r4", "r5", "r6", "r8", "cc", "memory");
            words %= 4;
        }
#endif
        for (; words > 0; --words, w += 4, p += 2) {
            a = rosler_dot_w16(a, w[0], p);
            b = rosler_dot_w16(b, w[1], p);
            c = rosler_dot_w16(c, w[2], p);
            d = rosler_dot_w16(d, w[3], p);
        }
        if (m % 2) {
            const int32_t v = *p;
            a += (int16_t)(w[0] & 0xFFFFu) * v;
            b += (int16_t)(w[1] & 0xFFFFu) * v;
            c += (int16_t)(w[2] & 0xFFFFu) * v;
            d += (int16_t)(w[3] & 0xFFFFu) * v;
            w += 4;
        }
        acc[0] = a;
        acc[1] = b;
        acc[2] = c;
        acc[3] = d;
    }
    return w;
}
