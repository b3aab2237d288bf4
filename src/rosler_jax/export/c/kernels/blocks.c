/* requires: dot_@KIND@, one_@BITS@
   Blocks of four rows, word by word: what dense spends its time in. */
ROSLER_APART const uint32_t *rosler_blocks_@KIND@(const int16_t *x, int m, int blocks,
                                                  const uint32_t *w, @ACC@ start, const @ACC@ *bias,
                                                  @ACC@ *acc)
{
    const int whole = m / @UNIT@, left = m % @UNIT@;
    for (; blocks > 0; --blocks, acc += 4) {
        const int16_t *p = x;
        @ACC@ a = start, b = start, c = start, d = start;
        int i;
        if (bias) {
            a += *bias++;
            b += *bias++;
            c += *bias++;
            d += *bias++;
        }
        for (i = whole; i > 0; --i, w += 4, p += @UNIT@) {
            a = rosler_dot_@KIND@(a, w[0], p);
            b = rosler_dot_@KIND@(b, w[1], p);
            c = rosler_dot_@KIND@(c, w[2], p);
            d = rosler_dot_@KIND@(d, w[3], p);
        }
        for (i = 0; i < left; ++i) {
            const int32_t v = p[i];
            a += rosler_one_@BITS@(w[0], i) * v;
            b += rosler_one_@BITS@(w[1], i) * v;
            c += rosler_one_@BITS@(w[2], i) * v;
            d += rosler_one_@BITS@(w[3], i) * v;
        }
        w += left ? 4 : 0;
        acc[0] = a;
        acc[1] = b;
        acc[2] = c;
        acc[3] = d;
    }
    return w;
}
