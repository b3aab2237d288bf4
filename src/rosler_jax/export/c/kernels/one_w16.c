static inline int32_t rosler_one_w16(uint32_t w, int i)
{
    return (int16_t)((w >> (16 * i)) & 0xFFFFu);
}
