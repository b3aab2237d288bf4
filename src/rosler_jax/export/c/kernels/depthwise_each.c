/* requires: finish_i32, byte
   One pixel of a convolution that takes every channel by itself: the numbers under the window, two
   taps of four channels at a time, then the last one. Words hold the weights of two taps, or of two
   channels; channels 0, 2, 1, 3. */
ROSLER_INLINE void rosler_each_i8(const int8_t *const *taps, int pairs, int single, int channels,
                                  const uint32_t *w, const rosler_finish_i32 *f, int8_t *y)
{
    const int32_t *bias = f->bias, *multiplier = f->multiplier;
    const int shift = f->shift - 32;
    const int32_t half = ((int32_t)1 << (shift - 1)) + f->zero * ((int32_t)1 << shift);
    int c, t;
    for (c = 0; c < channels; c += 4, multiplier += 4, y += 4) {
        const int8_t *const *tap = taps;
        int32_t p = 0, q = 0, r = 0, s = 0;
        if (bias) {
            p = bias[c];
            q = bias[c + 1];
            r = bias[c + 2];
            s = bias[c + 3];
        }
#if ROSLER_DSP
#if !defined(__clang__)
#pragma GCC unroll 8
#endif
        for (t = 0; t < pairs; ++t) {
            uint32_t a, b, u, v, k, l;
            __asm__ volatile("ldrd %[a], %[b], [%[tap]], #8\n\t"
                             "ldr %[a], [%[a], %[c]]\n\t"
                             "ldr %[b], [%[b], %[c]]\n\t"
                             "sxtb16 %[u], %[a]\n\t"
                             "sxtb16 %[v], %[b]\n\t"
                             "pkhbt %[k], %[u], %[v], lsl #16\n\t"
                             "pkhtb %[v], %[v], %[u], asr #16\n\t"
                             "ldrd %[u], %[l], [%[w]], #8\n\t"
                             "smlad %[p], %[k], %[u], %[p]\n\t"
                             "smlad %[r], %[v], %[l], %[r]\n\t"
                             "ldrd %[u], %[l], [%[w]], #8\n\t"
                             "sxtb16 %[a], %[a], ror #8\n\t"
                             "sxtb16 %[b], %[b], ror #8\n\t"
                             "pkhbt %[k], %[a], %[b], lsl #16\n\t"
                             "pkhtb %[b], %[b], %[a], asr #16\n\t"
                             "smlad %[q], %[k], %[u], %[q]\n\t"
                             "smlad %[s], %[b], %[l], %[s]"
                             : [p] "+r"(p), [q] "+r"(q), [r] "+r"(r), [s] "+r"(s), [w] "+r"(w),
                               [tap] "+r"(tap), [a] "=&r"(a), [b] "=&r"(b), [u] "=&r"(u),
                               [v] "=&r"(v), [k] "=&r"(k), [l] "=&r"(l)
                             : [c] "r"(c)
                             : "memory");
        }
        if (single) {
            uint32_t a, b, u, v;
            __asm__ volatile("ldr %[a], [%[tap]]\n\t"
                             "ldr %[a], [%[a], %[c]]\n\t"
                             "ldrd %[u], %[v], [%[w]], #8\n\t"
                             "sxtb16 %[b], %[a]\n\t"
                             "sxtb16 %[a], %[a], ror #8\n\t"
                             "smlabb %[p], %[b], %[u], %[p]\n\t"
                             "smlatt %[r], %[b], %[u], %[r]\n\t"
                             "smlabb %[q], %[a], %[v], %[q]\n\t"
                             "smlatt %[s], %[a], %[v], %[s]"
                             : [p] "+r"(p), [q] "+r"(q), [r] "+r"(r), [s] "+r"(s), [w] "+r"(w),
                               [a] "=&r"(a), [b] "=&r"(b), [u] "=&r"(u), [v] "=&r"(v)
                             : [c] "r"(c), [tap] "r"(tap)
                             : "memory");
        }
#else
        for (t = 0; t < pairs; ++t, w += 4, tap += 2) {
            const int8_t *a = tap[0] + c, *b = tap[1] + c;
            p += (int16_t)(w[0] & 0xFFFFu) * a[0] + (int16_t)(w[0] >> 16) * b[0];
            q += (int16_t)(w[2] & 0xFFFFu) * a[1] + (int16_t)(w[2] >> 16) * b[1];
            r += (int16_t)(w[1] & 0xFFFFu) * a[2] + (int16_t)(w[1] >> 16) * b[2];
            s += (int16_t)(w[3] & 0xFFFFu) * a[3] + (int16_t)(w[3] >> 16) * b[3];
        }
        if (single) {
            const int8_t *a = tap[0] + c;
            p += (int16_t)(w[0] & 0xFFFFu) * a[0];
            q += (int16_t)(w[1] & 0xFFFFu) * a[1];
            r += (int16_t)(w[0] >> 16) * a[2];
            s += (int16_t)(w[1] >> 16) * a[3];
            w += 2;
        }
#endif
        y[0] = rosler_byte(p, multiplier[0], half, shift);
        y[1] = rosler_byte(q, multiplier[1], half, shift);
        y[2] = rosler_byte(r, multiplier[2], half, shift);
        y[3] = rosler_byte(s, multiplier[3], half, shift);
    }
}
