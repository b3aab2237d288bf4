/* requires: threefry, bounded
   The row that column j of a uniform row sample picks. */
static inline uint32_t rosler_sampled_row(const uint32_t key[2], uint32_t rows, uint32_t j)
{
    uint32_t word[2];
    rosler_threefry(key, 0, j, word);
    return rosler_bounded(word[0], rows);
}
