/* requires: threefry, put_@S@
   The signs of a Rademacher sketch as weights. */
static void rosler_fill_rademacher_@S@(const uint32_t key[2], int rows, int cols, @W@ *w)
{
    int i, j;
    rosler_clear_@S@(w, rows, cols);
    for (j = 0; j < cols; ++j) {
        uint32_t word[2] = {0, 0};
        for (i = 0; i < rows; ++i) {
            if (i % 64 == 0) {
                rosler_threefry(key, (uint32_t)(i / 64), (uint32_t)j, word);
            } else if (i % 64 == 32) {
                word[0] = word[1];
            }
            rosler_put_@S@(w, rows, cols, i, j, word[0] & 1u ? -1 : 1);
            word[0] >>= 1;
        }
    }
}
