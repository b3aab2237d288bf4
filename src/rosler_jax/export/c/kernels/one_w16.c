static inline int32_t rosler_one_w16(const uint32_t *w, int step, int i)
{
    return (int16_t)((w[(i / 2) * step] >> (16 * (i % 2))) & 0xFFFFu);
}
