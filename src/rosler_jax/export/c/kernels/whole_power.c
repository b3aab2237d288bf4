/* A power of a whole number; overflow wraps, a negative exponent gives the whole part. */
static inline int32_t rosler_pow_i32(int32_t a, int32_t n)
{
    uint32_t y = 1, base = (uint32_t)a;
    if (n < 0) {
        return a == 1 || (a == -1 && n % 2 == 0) ? 1 : a == -1 ? -1 : 0;
    }
    for (; n > 0; n /= 2, base *= base) {
        y *= n % 2 ? base : 1u;
    }
    return (int32_t)y;
}
