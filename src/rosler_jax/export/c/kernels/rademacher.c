/* requires: threefry, apply_@FINISH@
   y = finish(x S), S of independent signs: 64 rows of a column from one hash. */
static void rosler_rademacher_@S@(const @X@ *x, int rows, int cols, const uint32_t key[2],
                                  const rosler_finish_@FINISH@ *f, @X@ *y)
{
    int i, j;
    for (j = 0; j < cols; ++j) {
        @ACC@ acc = 0;
        uint32_t word[2] = {0, 0};
        for (i = 0; i < rows; ++i) {
            if (i % 64 == 0) {
                rosler_threefry(key, (uint32_t)(i / 64), (uint32_t)j, word);
            } else if (i % 64 == 32) {
                word[0] = word[1];
            }
            acc = word[0] & 1u ? acc - (@ACC@)x[i] : acc + (@ACC@)x[i];
            word[0] >>= 1;
        }
        y[j] = rosler_apply_@FINISH@(f, acc, j);
    }
}
