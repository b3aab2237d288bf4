/* requires: dot_w16
   Four rows at a time, word by word: what dense spends its time in. On a DSP core one LDM brings the
   words of four rows; two words of each in a turn, so that half as many branches are taken. */
ROSLER_INLINE const uint32_t *rosler_block_w16(const int16_t *x, int words, const uint32_t *w,
                                               int32_t acc[4])
{
    int32_t a = acc[0], b = acc[1], c = acc[2], d = acc[3];
#if ROSLER_DSP
    int pairs = words / 2;
    if (pairs > 0) {
        uint32_t pair;
        __asm__("1:\n\t"
                "ldmia %[w]!, {r4, r5, r6, r8}\n\t"
                "ldr %[pair], [%[x]], #4\n\t"
                "smlad %[a], r4, %[pair], %[a]\n\t"
                "smlad %[b], r5, %[pair], %[b]\n\t"
                "smlad %[c], r6, %[pair], %[c]\n\t"
                "smlad %[d], r8, %[pair], %[d]\n\t"
                "ldmia %[w]!, {r4, r5, r6, r8}\n\t"
                "ldr %[pair], [%[x]], #4\n\t"
                "smlad %[a], r4, %[pair], %[a]\n\t"
                "smlad %[b], r5, %[pair], %[b]\n\t"
                "subs %[pairs], #1\n\t"
                "smlad %[c], r6, %[pair], %[c]\n\t"
                "smlad %[d], r8, %[pair], %[d]\n\t"
                "bne 1b"
                : [w] "+r"(w), [x] "+r"(x), [pairs] "+r"(pairs), [pair] "=&r"(pair), [a] "+r"(a),
                  [b] "+r"(b), [c] "+r"(c), [d] "+r"(d)
                :
                : "r4", "r5", "r6", "r8", "cc", "memory");
    }
    words %= 2;
#endif
    for (; words > 0; --words, w += 4, x += 2) {
        a = rosler_dot_w16(a, w[0], x);
        b = rosler_dot_w16(b, w[1], x);
        c = rosler_dot_w16(c, w[2], x);
        d = rosler_dot_w16(d, w[3], x);
    }
    acc[0] = a;
    acc[1] = b;
    acc[2] = c;
    acc[3] = d;
    return w;
}
