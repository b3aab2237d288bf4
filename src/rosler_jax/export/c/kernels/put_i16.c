/* Puts a weight into words of four 8-bit weights, laid out as rosler_dense_w8 reads them. */
static inline void rosler_put_i16(uint32_t *w, int m, int n, int i, int j, int32_t v)
{
    const int words = (m + 3) / 4, blocked = n - n % 4, slot = i % 4;
    const int byte = slot == 1 ? 2 : slot == 2 ? 1 : slot;
    uint32_t *word = j < blocked ? w + ((j / 4) * words + i / 4) * 4 + j % 4 : w + j * words + i / 4;
    *word |= ((uint32_t)v & 0xFFu) << (8 * byte);
}

static inline void rosler_clear_i16(uint32_t *w, int m, int n)
{
    int i;
    for (i = 0; i < ((m + 3) / 4) * n; ++i) {
        w[i] = 0;
    }
}
