static inline int16_t rosler_larger_i16(int16_t a, int16_t b)
{
    return b > a ? b : a;
}
