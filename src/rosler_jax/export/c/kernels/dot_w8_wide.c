/* requires: dot_w8 */
static inline int64_t rosler_dot_w8_wide(int64_t acc, uint32_t w, const int16_t *x)
{
    return acc + rosler_dot_w8(0, w, x);
}
