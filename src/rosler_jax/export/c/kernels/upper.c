/* requires: finish_i32
   Four sums to 16 bits, for shifts of 33 and more: half a unit then lies in the upper word of the
   product, and the lower one need not be looked at. */
ROSLER_INLINE int32_t rosler_scaled(int32_t acc, int32_t m, int shift)
{
    const int32_t upper = (int32_t)(((int64_t)acc * m) >> 32);
    return (upper + ((int32_t)1 << (shift - 33))) >> (shift - 32);
}

ROSLER_INLINE void rosler_upper4(const int32_t acc[4], const int32_t *m, int each, int shift, int relu,
                                 int16_t *y)
{
    const int32_t p = rosler_scaled(acc[0], m[0], shift);
    const int32_t q = rosler_scaled(acc[1], m[each], shift);
    const int32_t r = rosler_scaled(acc[2], m[2 * each], shift);
    const int32_t s = rosler_scaled(acc[3], m[3 * each], shift);
    if (relu) {
        y[0] = rosler_clip(p, 1);
        y[1] = rosler_clip(q, 1);
        y[2] = rosler_clip(r, 1);
        y[3] = rosler_clip(s, 1);
    } else {
        y[0] = rosler_clip(p, 0);
        y[1] = rosler_clip(q, 0);
        y[2] = rosler_clip(r, 0);
        y[3] = rosler_clip(s, 0);
    }
}
