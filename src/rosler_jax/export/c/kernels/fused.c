/* requires: @BLOCK@, rest, row, upper4
   y = finish(W x): rows of W in blocks of four, their words interleaved; the last n % 4 rows one by
   one. A word holds @UNIT@ weights of a row. */
ROSLER_INLINE void rosler_fused_@KIND@@T@(const int16_t *x, int m, int n, const uint32_t *w,
                                       const rosler_finish_i32 *f, @Y@ *y)
{
    const int whole = m / @UNIT@, left = m % @UNIT@, words = (m + @UNIT@ - 1) / @UNIT@;
    const int32_t *bias = f->bias, *multiplier = f->multiplier;
    const int32_t start = @START@;
    int j;
    for (j = n / 4; j > 0; --j, multiplier += 4 * f->each, y += 4) {
        int32_t acc[4] = {start, start, start, start};
        if (bias) {
            acc[0] += *bias++;
            acc[1] += *bias++;
            acc[2] += *bias++;
            acc[3] += *bias++;
        }
        w = rosler_block_@KIND@(x, whole, w, acc);
        rosler_rest_@KIND@(x + whole * @UNIT@, left, w, acc);
        w += left ? 4 : 0;
        rosler_upper4@T@(acc, multiplier, f, y);
    }
    for (j = n % 4; j > 0; --j, multiplier += f->each, ++y, w += words) {
        const int32_t sum = rosler_row_@KIND@(x, m, w, start + (bias ? *bias++ : 0));
        *y = (@Y@)rosler_clip(rosler_scaled(sum, *multiplier, f->shift, f->zero), f->limits);
    }
}
