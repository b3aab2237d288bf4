/* floor(word n / 2^32), and the first number of block t of `blocks`. */
static inline uint32_t rosler_bounded(uint32_t word, uint32_t n)
{
    return (uint32_t)(((uint64_t)word * n) >> 32);
}

static inline uint32_t rosler_boundary(uint32_t t, uint32_t size, uint32_t blocks)
{
    return t * (size / blocks) + (t * (size % blocks)) / blocks;
}
