/* requires: finish_i64
   Finishes n sums of 64 bits that hold their biases. */
ROSLER_INLINE void rosler_rows_i64@T@(const rosler_finish_i64 *f, const int64_t *acc, int n,
                                       @Y@ *y)
{
    const int64_t half = (int64_t)1 << (f->shift - 1);
    int j;
    for (j = 0; j < n; ++j) {
        const int32_t m = f->multiplier[f->each ? j : 0];
        const int32_t v = (int32_t)((acc[j] * m + half) >> f->shift);
        y[j] = (@Y@)rosler_clip(v + f->zero, f->limits);
    }
}
