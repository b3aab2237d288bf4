/* requires: finish_i32, taps
   One pixel of a convolution that takes every channel by itself: the numbers under the window, two
   taps of two channels at a time, then the last one. Words hold the weights of two taps. For shifts of
   33 and more. */
ROSLER_APART void rosler_depthwise_i16_@TAPS@_@LIMITS@(const int16_t *const *taps, int channels,
                                              const uint32_t *w, const rosler_finish_i32 *f,
                                              int16_t *y)
{
    const int32_t *bias = f->bias, *multiplier = f->multiplier;
    const int shift = f->shift - 32;
    const int32_t half = (int32_t)1 << (shift - 1);
    int c, t;
    for (c = 0; c < channels; c += 2, multiplier += 2, y += 2) {
        const int16_t *const *tap = taps;
        int32_t p = 0, q = 0;
        if (bias) {
            p = bias[c];
            q = bias[c + 1];
        }
#if ROSLER_DSP
#if !defined(__clang__)
#pragma GCC unroll 8
#endif
        for (t = 0; t < @TAPS@ / 2; ++t) {
            uint32_t a, b, u, v;
            const int at = 2 * c;
            __asm__ volatile("ldrd %[a], %[b], [%[tap]], #8\n\t"
                             "ldr %[a], [%[a], %[at]]\n\t"
                             "ldr %[b], [%[b], %[at]]\n\t"
                             "ldrd %[u], %[v], [%[w]], #8\n\t"
                             "smlabb %[p], %[a], %[u], %[p]\n\t"
                             "smlabt %[p], %[b], %[u], %[p]\n\t"
                             "smlatb %[q], %[a], %[v], %[q]\n\t"
                             "smlatt %[q], %[b], %[v], %[q]"
                             : [p] "+r"(p), [q] "+r"(q), [w] "+r"(w), [tap] "+r"(tap), [a] "=&r"(a),
                               [b] "=&r"(b), [u] "=&r"(u), [v] "=&r"(v)
                             : [at] "r"(at)
                             : "memory");
        }
#else
        for (t = 0; t < @TAPS@ / 2; ++t, w += 2, tap += 2) {
            const int16_t *a = tap[0] + c, *b = tap[1] + c;
            p += (int16_t)(w[0] & 0xFFFFu) * a[0] + (int16_t)(w[0] >> 16) * b[0];
            q += (int16_t)(w[1] & 0xFFFFu) * a[1] + (int16_t)(w[1] >> 16) * b[1];
        }
#endif
        if (@TAPS@ % 2) {
            p += (int16_t)(*w & 0xFFFFu) * tap[0][c];
            q += (int16_t)(*w++ >> 16) * tap[0][c + 1];
        }
        y[0] = rosler_clip(((int32_t)(((int64_t)p * multiplier[0]) >> 32) + half) >> shift, @LIMITS@);
        y[1] = rosler_clip(((int32_t)(((int64_t)q * multiplier[1]) >> 32) + half) >> shift, @LIMITS@);
    }
}
