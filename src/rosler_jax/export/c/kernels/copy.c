/* Pixels copied, and pixels that do not exist. */
static inline void rosler_copy_@S@(const @X@ *x, int count, @X@ *y)
{
    for (; count >= 4; count -= 4, x += 4, y += 4) {
        memcpy(y, x, 4 * sizeof *y);
    }
    for (; count > 0; --count) {
        *y++ = *x++;
    }
}

static inline void rosler_zero_@S@(@X@ *y, int count)
{
    for (; count > 0; --count) {
        *y++ = 0;
    }
}
