/* requires: nibble */
static inline int32_t rosler_one_w4(const uint32_t *w, int step, int i)
{
    const int slot = i % 8;
    return rosler_nibble(w[(i / 8) * step], slot / 2 + 4 * (slot % 2));
}
