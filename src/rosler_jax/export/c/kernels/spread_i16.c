/* requires: spread
   A pixel's patch of 16 bits into a tile, four numbers at a time. */
static inline void rosler_copy_@S@(const int16_t *x, int count, @X@ *slot)
{
    int16_t *y = slot->pixel;
    for (; count > 0; count -= 4, x += 4, y += 16) {
        y[0] = x[0];
        y[1] = x[2];
        y[8] = x[1];
        y[9] = x[3];
    }
}

static inline void rosler_zero_@S@(@X@ *slot, int count)
{
    int16_t *y = slot->pixel;
    for (; count > 0; count -= 4, y += 16) {
        y[0] = y[1] = y[8] = y[9] = @FILL@;
    }
}
