/* requires: threefry, bijection, fwht, apply_@FINISH@
   y = finish(x D H P): signs, a Walsh-Hadamard transform, sampled columns; all from a seed. */
static void rosler_srht_@S@(const @X@ *x, int rows, int cols, int bits, const uint32_t signs[2],
                            const uint32_t columns[2], @ACC@ *buffer,
                            const rosler_finish_@FINISH@ *f, @X@ *y)
{
    rosler_bijection p;
    uint32_t word[2] = {0, 0};
    int i, j;
    for (i = 0; i < rows; ++i) {
        if (i % 64 == 0) {
            rosler_threefry(signs, (uint32_t)(i / 64), 0, word);
        } else if (i % 64 == 32) {
            word[0] = word[1];
        }
        buffer[i] = word[0] & 1u ? -(@ACC@)x[i] : (@ACC@)x[i];
        word[0] >>= 1;
    }
    for (; i < 1 << bits; ++i) {
        buffer[i] = 0;
    }
    rosler_fwht_@S@(buffer, bits);
    rosler_bijection_of(&p, columns, bits);
    for (j = 0; j < cols; ++j) {
        y[j] = rosler_apply_@FINISH@(f, buffer[rosler_permute(&p, (uint32_t)j)], j);
    }
}
