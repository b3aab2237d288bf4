/* Pixels copied; pixels that do not exist. */
static inline void rosler_copy_@S@(const @X@ *x, int count, @X@ *y)
{
    int i;
    for (i = 0; i < count; ++i) {
        y[i] = x[i];
    }
}

static inline void rosler_zero_@S@(@X@ *y, int count)
{
    int i;
    for (i = 0; i < count; ++i) {
        y[i] = 0;
    }
}
