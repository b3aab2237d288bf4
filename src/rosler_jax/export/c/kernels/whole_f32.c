/* Cut off to a whole number within 32 bits; NaN gives 0. */
static inline int32_t rosler_whole_f32(float x)
{
    if (!(x > -2147483648.0f)) {
        return x == x ? (-2147483647 - 1) : 0;
    }
    return x < 2147483648.0f ? (int32_t)x : 2147483647;
}
