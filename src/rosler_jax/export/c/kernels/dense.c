/* requires: @BLOCK@, rest, row
   acc = b + W x: rows of W in blocks of four, their words interleaved; the last n % 4 rows one by
   one. A word holds @UNIT@ weights of a row; there may be no b. */
ROSLER_INLINE void rosler_dense_@KIND@(const int16_t *x, int m, int n, const uint32_t *w,
                                       const @ACC@ *b, @ACC@ *acc)
{
    const int whole = m / @UNIT@, left = m % @UNIT@, words = (m + @UNIT@ - 1) / @UNIT@;
    const @ACC@ start = @START@;
    int j;
    for (j = 0; j < n; ++j) {
        acc[j] = b ? start + b[j] : start;
    }
    for (j = n / 4; j > 0; --j, acc += 4) {
        w = rosler_block_@KIND@(x, whole, w, acc);
        rosler_rest_@KIND@(x + whole * @UNIT@, left, w, acc);
        w += left ? 4 : 0;
    }
    for (j = n % 4; j > 0; --j, ++acc, w += words) {
        *acc = rosler_row_@KIND@(x, m, w, *acc);
    }
}
