/* requires: fixed_round, fixed_clip
   y = (t multiplier + b 2^up) 2^-shift. */
static void rosler_fixed_finish(const int32_t *t, int count, int32_t multiplier,
                                const int32_t *bias, int up, int shift, int16_t *y)
{
    int j;
    for (j = 0; j < count; ++j) {
        const int64_t add = bias ? bias[j] * ((int64_t)1 << up) : 0;
        y[j] = rosler_fixed_clip(rosler_fixed_round((int64_t)t[j] * multiplier + add, shift));
    }
}
