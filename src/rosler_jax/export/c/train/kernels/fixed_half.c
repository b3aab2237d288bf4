/* The 16 bits of a weight that products take. */
static inline int32_t rosler_half(int32_t w)
{
    return (w + 32768) >> 16;
}
