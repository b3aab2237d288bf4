/* requires: dot_@KIND@, one_@BITS@, @BLOCK@
   acc = b + W x: rows of W in blocks of four, their words interleaved; the last n % 4 rows one by
   one. A word holds @UNIT@ weights of a row; there may be no b. */
ROSLER_INLINE void rosler_dense_@KIND@(const int16_t *x, int m, int n, const uint32_t *w, const @ACC@ *b,
                                @ACC@ *acc)
{
    const int whole = m / @UNIT@, left = m % @UNIT@;
    const int16_t *rest = x + whole * @UNIT@;
    const @ACC@ start = @START@;
    int i, j, k;
    for (j = n / 4; j > 0; --j, acc += 4) {
        acc[0] = acc[1] = acc[2] = acc[3] = start;
        if (b) {
            acc[0] += *b++;
            acc[1] += *b++;
            acc[2] += *b++;
            acc[3] += *b++;
        }
        w = rosler_block_@KIND@(x, whole, w, acc);
        for (i = 0; i < left; ++i) {
            for (k = 0; k < 4; ++k) {
                acc[k] += rosler_one_@BITS@(w[k], i) * (int32_t)rest[i];
            }
        }
        w += left ? 4 : 0;
    }
    for (j = n % 4; j > 0; --j, ++acc) {
        @ACC@ a = b ? start + *b++ : start;
        for (k = 0; k < whole; ++k, ++w) {
            a = rosler_dot_@KIND@(a, *w, x + k * @UNIT@);
        }
        for (i = 0; i < left; ++i) {
            a += rosler_one_@BITS@(*w, i) * (int32_t)rest[i];
        }
        w += left ? 1 : 0;
        *acc = a;
    }
}
