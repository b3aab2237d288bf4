/* Pixels as 16 bits, and pixels that do not exist: the integer that stands for 0. */
static inline void rosler_copy_@S@(const @SOURCE@ *x, int count, @X@ *y)
{
    for (; count >= 4; count -= 4, x += 4, y += 4) {
        y[0] = x[0];
        y[1] = x[1];
        y[2] = x[2];
        y[3] = x[3];
    }
    for (; count > 0; --count) {
        *y++ = *x++;
    }
}

static inline void rosler_zero_@S@(@X@ *y, int count)
{
    for (; count > 0; --count) {
        *y++ = @FILL@;
    }
}
