/* Limits of 16 bits; right shifts of negative numbers keep their sign with every compiler known. */
typedef char rosler_shifts_keep_the_sign[(-1 >> 1) == -1 ? 1 : -1];

static inline int16_t rosler_clip(int64_t y, int32_t low)
{
    return (int16_t)(y < low ? low : y > 32767 ? 32767 : y);
}
