/* requires: finish_i32
   Finishes n sums that hold their biases. From a shift of 33 on, half a unit lies in the upper word
   of the product, and the lower one need not be looked at. */
ROSLER_INLINE void rosler_upper_i32(const int32_t *acc, const int32_t *m, int each, int shift,
                                    int relu, int n, int16_t *y)
{
    const int32_t half = (int32_t)1 << (shift - 33);
    for (; n > 1; n -= 2, m += 2 * each, acc += 2, y += 2) {
        const int32_t p = (int32_t)(((int64_t)acc[0] * m[0]) >> 32);
        const int32_t q = (int32_t)(((int64_t)acc[1] * m[each]) >> 32);
        y[0] = rosler_clip((p + half) >> (shift - 32), relu);
        y[1] = rosler_clip((q + half) >> (shift - 32), relu);
    }
    if (n > 0) {
        const int32_t p = (int32_t)(((int64_t)*acc * *m) >> 32);
        *y = rosler_clip((p + half) >> (shift - 32), relu);
    }
}

ROSLER_INLINE void rosler_rows_i32(const rosler_finish_i32 *f, const int32_t *acc, int n, int16_t *y)
{
    const int32_t *m = f->multiplier;
    const int shift = f->shift;
    int j;
    if (shift < 33) {
        for (j = 0; j < n; ++j, m += f->each) {
            const int64_t y64 = ((int64_t)acc[j] * *m + ((int64_t)1 << (shift - 1))) >> shift;
            y[j] = rosler_clip((int32_t)y64, f->relu);
        }
    } else if (f->relu) {
        rosler_upper_i32(acc, m, f->each, shift, 1, n, y);
    } else {
        rosler_upper_i32(acc, m, f->each, shift, 0, n, y);
    }
}
