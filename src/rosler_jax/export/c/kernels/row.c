/* requires: dot_@KIND@, one_@BITS@
   start + one row. */
ROSLER_INLINE @ACC@ rosler_row_@KIND@(const int16_t *x, int m, const uint32_t *w, @ACC@ start)
{
    int i, k;
    for (k = m / @UNIT@; k > 0; --k, ++w, x += @UNIT@) {
        start = rosler_dot_@KIND@(start, *w, x);
    }
    for (i = 0; i < m % @UNIT@; ++i) {
        start += rosler_one_@BITS@(*w, i) * (int32_t)x[i];
    }
    return start;
}
