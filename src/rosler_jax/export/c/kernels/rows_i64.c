/* requires: finish_i64
   Finishes n sums of 64 bits that hold their biases. */
ROSLER_INLINE void rosler_rows_i64(const rosler_finish_i64 *f, const int64_t *acc, int n, int16_t *y)
{
    const int64_t half = (int64_t)1 << (f->shift - 1);
    int j;
    for (j = 0; j < n; ++j) {
        const int32_t m = f->multiplier[f->each ? j : 0];
        y[j] = rosler_clip((int32_t)((acc[j] * m + half) >> f->shift), f->relu);
    }
}
