/* requires: clip
   A sum to 8 bits, for shifts of 33 and more: half a unit, with the integer that stands for 0, lies in
   the upper word of the product. */
ROSLER_INLINE int8_t rosler_byte(int32_t acc, int32_t m, int32_t half, int shift)
{
    return (int8_t)rosler_clip(((int32_t)(((int64_t)acc * m) >> 32) + half) >> shift, 2);
}
