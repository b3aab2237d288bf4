/* Fixed point, as fixed.py specifies it: x 2^-shift to the nearest, for a shift of either sign. */
typedef char rosler_fixed_shifts_keep_the_sign[(-1 >> 1) == -1 ? 1 : -1];

static inline int64_t rosler_fixed_round(int64_t x, int shift)
{
    if (shift > 0) {
        return (x + ((int64_t)1 << (shift - 1))) >> shift;
    }
    return x * ((int64_t)1 << -shift);
}
