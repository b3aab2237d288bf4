/* requires: fixed_normalise, fixed_clip
   How many bits a positive number has. */
static int rosler_fixed_bits(int32_t number)
{
    int bits = 0;
    for (; number; number >>= 1) {
        ++bits;
    }
    return bits;
}

/* The mean square of one example, its error with its exponent: the one of z share is given. */
static int32_t rosler_fixed_squares(const int16_t *y, int count, const int16_t *target,
                                    int32_t share, int e, int32_t *t, int16_t *d, int *exponent)
{
    int64_t sum = count / 2;
    int j;
    for (j = 0; j < count; ++j) {
        const int32_t z = rosler_fixed_clip(y[j] - target[j]);
        sum += (int64_t)(z * z);
        t[j] = z * share;
    }
    *exponent = rosler_fixed_normalise(t, count, e, d);
    return (int32_t)(sum / count);
}
