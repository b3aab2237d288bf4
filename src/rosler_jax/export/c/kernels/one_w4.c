/* requires: nibble */
static inline int32_t rosler_one_w4(uint32_t w, int i)
{
    return rosler_nibble(w, i / 2 + 4 * (i % 2));
}
