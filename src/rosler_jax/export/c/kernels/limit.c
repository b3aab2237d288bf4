static inline int32_t rosler_limit(int32_t y, int32_t low, int32_t high)
{
    return y < low ? low : y > high ? high : y;
}
