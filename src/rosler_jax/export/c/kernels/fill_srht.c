/* requires: threefry, bijection, put_@S@
   The signs of an SRHT as weights: small windows need no transform. */
static void rosler_fill_srht_@S@(const uint32_t signs[2], const uint32_t columns[2], int bits,
                                 int rows, int cols, @W@ *w)
{
    rosler_bijection p;
    int i, j;
    rosler_bijection_of(&p, columns, bits);
    rosler_clear_@S@(w, rows, cols);
    for (j = 0; j < cols; ++j) {
        const uint32_t column = rosler_permute(&p, (uint32_t)j);
        uint32_t word[2] = {0, 0};
        for (i = 0; i < rows; ++i) {
            uint32_t parity = column & (uint32_t)i;
            if (i % 64 == 0) {
                rosler_threefry(signs, (uint32_t)(i / 64), 0, word);
            } else if (i % 64 == 32) {
                word[0] = word[1];
            }
            parity ^= parity >> 16;
            parity ^= parity >> 8;
            parity ^= parity >> 4;
            parity ^= parity >> 2;
            parity ^= parity >> 1;
            rosler_put_@S@(w, rows, cols, i, j, (parity ^ word[0]) & 1u ? -1 : 1);
            word[0] >>= 1;
        }
    }
}
