/* requires: dsp
   A sum to a value, whatever the shift, before its limits; right shifts of negative numbers keep
   their sign with every compiler known. */
static inline int32_t rosler_requant(int64_t acc, int32_t m, int shift, int zero)
{
    return (int32_t)((acc * m + ((int64_t)1 << (shift - 1))) >> shift) + zero;
}
