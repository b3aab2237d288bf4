/* requires: finish_i32
   A sum to a value; for shifts of 33 and more half a unit then lies in the upper word of the
   product, and the lower one need not be looked at. */
ROSLER_INLINE int32_t rosler_scaled(int32_t acc, int32_t m, int shift, int zero)
{
    const int32_t upper = (int32_t)(((int64_t)acc * m) >> 32);
    if (shift < 33) {
        return (int32_t)(((int64_t)acc * m + ((int64_t)1 << (shift - 1))) >> shift) + zero;
    }
    return (upper + ((int32_t)1 << (shift - 33)) + zero * ((int32_t)1 << (shift - 32))) >> (shift - 32);
}
