/* requires: fixed_normalise
   Softmax by a table, its error with its exponent, and what the label's probability lacks. */
static int32_t rosler_fixed_cross_entropy(const int16_t *y, int count, int label, int bits,
                                          const uint16_t *table, int32_t share, int32_t *t,
                                          int16_t *d, int *exponent)
{
    int32_t most = y[0], lack, total = 0;
    int j;
    for (j = 1; j < count; ++j) {
        most = y[j] > most ? y[j] : most;
    }
    for (j = 0; j < count; ++j) {
        const int32_t z = most - y[j], k = z >> bits, f = z & ((1 << bits) - 1);
        t[j] = 0;
        if (k < @LAST@) {
            t[j] = table[k] - (((table[k] - table[k + 1]) * f + (1 << (bits - 1))) >> bits);
        }
        total += t[j];
    }
    for (j = 0; j < count; ++j) {
        t[j] = (int32_t)(((uint32_t)t[j] * 32768u + (uint32_t)total / 2u) / (uint32_t)total);
    }
    lack = 32768 - t[label];
    for (j = 0; j < count; ++j) {
        t[j] = (t[j] - (j == label ? 32768 : 0)) * share;
    }
    *exponent = rosler_fixed_normalise(t, count, 30, d);
    return lack;
}
