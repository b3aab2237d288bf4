/* requires: finish_i32
   Finishes n sums that hold their biases, whatever the shift. */
ROSLER_INLINE void rosler_rows_i32@T@(const rosler_finish_i32 *f, const int32_t *acc, int n,
                                       @Y@ *y)
{
    int j;
    for (j = 0; j < n; ++j) {
        const int32_t m = f->multiplier[f->each ? j : 0];
        y[j] = (@Y@)rosler_clip((int32_t)(((int64_t)acc[j] * m + f->half) >> f->shift), f->limits);
    }
}
