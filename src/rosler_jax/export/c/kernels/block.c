/* requires: dot_@KIND@
   acc += four rows, word by word: what a product spends its time in. */
ROSLER_APART const uint32_t *rosler_block_@KIND@(const int16_t *x, int words, const uint32_t *w,
                                                 @ACC@ acc[4])
{
    @ACC@ a = acc[0], b = acc[1], c = acc[2], d = acc[3];
    for (; words > 0; --words, w += 4, x += @UNIT@) {
        a = rosler_dot_@KIND@(a, w[0], x);
        b = rosler_dot_@KIND@(b, w[1], x);
        c = rosler_dot_@KIND@(c, w[2], x);
        d = rosler_dot_@KIND@(d, w[3], x);
    }
    acc[0] = a;
    acc[1] = b;
    acc[2] = c;
    acc[3] = d;
    return w;
}
