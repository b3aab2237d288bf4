static inline int32_t rosler_one_w8(uint32_t w, int i)
{
    const int byte = i == 1 ? 2 : i == 2 ? 1 : i;
    return (int8_t)((w >> (8 * byte)) & 0xFFu);
}
