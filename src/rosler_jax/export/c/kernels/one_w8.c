static inline int32_t rosler_one_w8(const uint32_t *w, int step, int i)
{
    const int slot = i % 4;
    const int byte = slot == 1 ? 2 : slot == 2 ? 1 : slot;
    return (int8_t)((w[(i / 4) * step] >> (8 * byte)) & 0xFFu);
}
