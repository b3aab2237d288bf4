/* requires: dot_@KIND@, one_@BITS@, @BLOCKS@
   acc = b + W x: rows of W in blocks of four, their words interleaved; the last n % 4 rows one by
   one. A word holds @UNIT@ weights of a row; there may be no b. */
ROSLER_INLINE void rosler_dense_@KIND@(const int16_t *x, int m, int n, const uint32_t *w,
                                       const @ACC@ *b, @ACC@ *acc)
{
    const int whole = m / @UNIT@, left = m % @UNIT@;
    const @ACC@ start = @START@;
    int i, j, k;
    if (n >= 4) {
        w = rosler_blocks_@KIND@(x, m, n / 4, w, start, b, acc);
    }
    for (j = n - n % 4; j < n; ++j) {
        @ACC@ a = b ? start + b[j] : start;
        for (k = 0; k < whole; ++k, ++w) {
            a = rosler_dot_@KIND@(a, *w, x + k * @UNIT@);
        }
        for (i = 0; i < left; ++i) {
            a += rosler_one_@BITS@(*w, i) * (int32_t)x[whole * @UNIT@ + i];
        }
        w += left ? 1 : 0;
        acc[j] = a;
    }
}
