/* requires: spread
   A pixel's patch of single bytes into a tile, four numbers at a time; what is missing is filled. */
static inline void rosler_copy_@S@(const @SOURCE@ *x, int count, @X@ *slot)
{
    int16_t *y = slot->pixel;
    for (; count > 0; count -= 4, x += 4, y += 16) {
#if ROSLER_DSP
        uint32_t v, even, odd;
        memcpy(&v, x, sizeof v);
        __asm__("@EXTEND@ %0, %1" : "=r"(even) : "r"(v));
        __asm__("@EXTEND@ %0, %1, ror #8" : "=r"(odd) : "r"(v));
        memcpy(y, &even, sizeof even);
        memcpy(y + 8, &odd, sizeof odd);
#else
        y[0] = x[0];
        y[1] = x[2];
        y[8] = x[1];
        y[9] = x[3];
#endif
    }
}

static inline void rosler_zero_@S@(@X@ *slot, int count)
{
    int16_t *y = slot->pixel;
    for (; count > 0; count -= 4, y += 16) {
        y[0] = y[1] = y[8] = y[9] = @FILL@;
    }
}
