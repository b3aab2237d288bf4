static inline int32_t rosler_nibble(uint32_t w, int k)
{
    return (int32_t)((w >> (4 * k)) & 15u) - 8;
}
