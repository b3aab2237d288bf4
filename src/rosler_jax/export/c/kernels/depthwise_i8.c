/* requires: spread, upper
   One pixel of a convolution that takes every channel by itself: the numbers under the window, two
   taps of four channels at a time. Words hold the weights of two taps; channels 0, 2, 1, 3. */
ROSLER_INLINE int8_t rosler_byte(int32_t acc, int32_t m, int shift, int zero)
{
    return (int8_t)rosler_clip(rosler_scaled(acc, m, shift, zero), 2);
}

ROSLER_INLINE void rosler_depthwise_i8(const int8_t *const *taps, int pairs, int channels,
                                       const uint32_t *w, const rosler_finish_i32 *f, int8_t *y)
{
    const int32_t *bias = f->bias, *multiplier = f->multiplier;
    const int shift = f->shift, zero = f->zero, each = f->each;
    int c, t;
    for (c = 0; c < channels; c += 4, multiplier += 4 * each, y += 4) {
        int32_t p = 0, q = 0, r = 0, s = 0;
        if (bias) {
            p = bias[c];
            q = bias[c + 1];
            r = bias[c + 2];
            s = bias[c + 3];
        }
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 8
#endif
        for (t = 0; t < pairs; ++t, w += 4) {
#if ROSLER_DSP
            uint32_t a, b, even, odd, first, second;
            memcpy(&a, taps[2 * t] + c, sizeof a);
            memcpy(&b, taps[2 * t + 1] + c, sizeof b);
            __asm__("sxtb16 %0, %1" : "=r"(even) : "r"(a));
            __asm__("sxtb16 %0, %1" : "=r"(odd) : "r"(b));
            __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(first) : "r"(even), "r"(odd));
            __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(second) : "r"(odd), "r"(even));
            p = __smlad((int16x2_t)first, (int16x2_t)w[0], p);
            r = __smlad((int16x2_t)second, (int16x2_t)w[1], r);
            __asm__("sxtb16 %0, %1, ror #8" : "=r"(even) : "r"(a));
            __asm__("sxtb16 %0, %1, ror #8" : "=r"(odd) : "r"(b));
            __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(first) : "r"(even), "r"(odd));
            __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(second) : "r"(odd), "r"(even));
            q = __smlad((int16x2_t)first, (int16x2_t)w[2], q);
            s = __smlad((int16x2_t)second, (int16x2_t)w[3], s);
#else
            const int8_t *a = taps[2 * t] + c, *b = taps[2 * t + 1] + c;
            p += (int16_t)(w[0] & 0xFFFFu) * a[0] + (int16_t)(w[0] >> 16) * b[0];
            q += (int16_t)(w[2] & 0xFFFFu) * a[1] + (int16_t)(w[2] >> 16) * b[1];
            r += (int16_t)(w[1] & 0xFFFFu) * a[2] + (int16_t)(w[1] >> 16) * b[2];
            s += (int16_t)(w[3] & 0xFFFFu) * a[3] + (int16_t)(w[3] >> 16) * b[3];
#endif
        }
        y[0] = rosler_byte(p, multiplier[0], shift, zero);
        y[1] = rosler_byte(q, multiplier[each], shift, zero);
        y[2] = rosler_byte(r, multiplier[2 * each], shift, zero);
        y[3] = rosler_byte(s, multiplier[3 * each], shift, zero);
    }
}

/* Where the numbers under a window lie; those beyond the image are ones that stand for 0. */
static inline void rosler_taps(const int8_t *x, int height, int width, int channels, int top, int left,
                               int rows, int cols, int step_y, int step_x, const int8_t *none,
                               const int8_t **taps)
{
    int k, l;
    for (k = 0; k < rows; ++k) {
        const int i = top + k * step_y;
        const int8_t *row = x + i * width * channels;
        for (l = 0; l < cols; ++l) {
            const int j = left + l * step_x;
            *taps++ = i < 0 || i >= height || j < 0 || j >= width ? none : row + j * channels;
        }
    }
    *taps = none;
}
