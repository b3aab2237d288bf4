/* requires: one_@BITS@
   acc += what a row has left of a word, for four rows; and for one. */
ROSLER_INLINE void rosler_rest_@KIND@(const int16_t *x, int left, const uint32_t *w, @ACC@ acc[4])
{
    int i;
    for (i = 0; i < left; ++i) {
        acc[0] += rosler_one_@BITS@(w[0], i) * (int32_t)x[i];
        acc[1] += rosler_one_@BITS@(w[1], i) * (int32_t)x[i];
        acc[2] += rosler_one_@BITS@(w[2], i) * (int32_t)x[i];
        acc[3] += rosler_one_@BITS@(w[3], i) * (int32_t)x[i];
    }
}
