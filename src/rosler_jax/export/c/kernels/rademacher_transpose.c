/* requires: threefry, apply_@FINISH@
   y = finish(z S^T), 64 outputs at a time. */
static void rosler_rademacher_transpose_@S@(const @X@ *z, int rows, int cols, const uint32_t key[2],
                                            @ACC@ *block, const rosler_finish_@FINISH@ *f, @X@ *y)
{
    int first, i, j;
    for (first = 0; first < rows; first += 64) {
        const int count = rows - first < 64 ? rows - first : 64;
        for (i = 0; i < 64; ++i) {
            block[i] = 0;
        }
        for (j = 0; j < cols; ++j) {
            const @ACC@ v = z[j];
            uint32_t word[2];
            rosler_threefry(key, (uint32_t)(first / 64), (uint32_t)j, word);
            for (i = 0; i < count; ++i) {
                const uint32_t negative = (word[i / 32] >> (i % 32)) & 1u;
                block[i] = negative ? block[i] - v : block[i] + v;
            }
        }
        for (i = 0; i < count; ++i) {
            y[first + i] = rosler_apply_@FINISH@(f, block[i], first + i);
        }
    }
}
