/* requires: dot_@KIND@, one_@BITS@, finish_@FINISH@
   y = finish(W x): rows of W in blocks of four, their words interleaved; the last n % 4 rows one by
   one. A word holds @UNIT@ weights of a row. */
static void rosler_dense_@KIND@(const int16_t *x, int m, int n, const uint32_t *w,
                                const rosler_finish_@FINISH@ *f, int16_t *y)
{
    const int whole = m / @UNIT@, blocked = n - n % 4;
    const @ACC@ start = @START@;
    int i, j, k;
    for (j = 0; j < blocked; j += 4) {
        const int16_t *p = x;
        @ACC@ a = start, b = start, c = start, d = start;
        for (k = 0; k + 2 <= whole; k += 2) {
            a = rosler_dot_@KIND@(a, w[0], p);
            b = rosler_dot_@KIND@(b, w[1], p);
            c = rosler_dot_@KIND@(c, w[2], p);
            d = rosler_dot_@KIND@(d, w[3], p);
            a = rosler_dot_@KIND@(a, w[4], p + @UNIT@);
            b = rosler_dot_@KIND@(b, w[5], p + @UNIT@);
            c = rosler_dot_@KIND@(c, w[6], p + @UNIT@);
            d = rosler_dot_@KIND@(d, w[7], p + @UNIT@);
            w += 8;
            p += 2 * @UNIT@;
        }
        if (k < whole) {
            a = rosler_dot_@KIND@(a, w[0], p);
            b = rosler_dot_@KIND@(b, w[1], p);
            c = rosler_dot_@KIND@(c, w[2], p);
            d = rosler_dot_@KIND@(d, w[3], p);
            w += 4;
            p += @UNIT@;
        }
        for (i = whole * @UNIT@; i < m; ++i) {
            const int32_t v = *p++;
            const int t = i - whole * @UNIT@;
            a += rosler_one_@BITS@(w + 0, 4, t) * v;
            b += rosler_one_@BITS@(w + 1, 4, t) * v;
            c += rosler_one_@BITS@(w + 2, 4, t) * v;
            d += rosler_one_@BITS@(w + 3, 4, t) * v;
        }
        w += whole * @UNIT@ < m ? 4 : 0;
        y[j] = rosler_apply_@FINISH@(f, a, j);
        y[j + 1] = rosler_apply_@FINISH@(f, b, j + 1);
        y[j + 2] = rosler_apply_@FINISH@(f, c, j + 2);
        y[j + 3] = rosler_apply_@FINISH@(f, d, j + 3);
    }
    for (j = blocked; j < n; ++j) {
        @ACC@ a = start;
        for (k = 0; k < whole; ++k) {
            a = rosler_dot_@KIND@(a, *w++, x + k * @UNIT@);
        }
        for (i = whole * @UNIT@; i < m; ++i) {
            a += rosler_one_@BITS@(w, 1, i - whole * @UNIT@) * (int32_t)x[i];
        }
        w += whole * @UNIT@ < m ? 1 : 0;
        y[j] = rosler_apply_@FINISH@(f, a, j);
    }
}
