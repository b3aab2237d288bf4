/* Probabilities of rows in units of 2^-15, at most 32767: e^-t from a table of 257 numbers on
   0 <= t < 16, interpolated. */
static void rosler_softmax_rows_@S@(const @X@ *x, int rows, int n, uint32_t multiplier, int shift,
                                    const uint16_t *table, int16_t *y)
{
    for (; rows > 0; --rows, x += n, y += n) {
        int32_t most = x[0];
        uint32_t sum = 0;
        int i;
        for (i = 1; i < n; ++i) {
            most = x[i] > most ? x[i] : most;
        }
        for (i = 0; i < n; ++i) {
            const uint64_t t = ((uint64_t)(most - x[i]) * multiplier) >> shift;
            const uint32_t u = t > 65535u ? 65535u : (uint32_t)t, k = u >> 8, f = u & 255u;
            const uint32_t fall = (uint32_t)(table[k] - table[k + 1]);
            const uint32_t e = table[k] - ((fall * f + 128u) >> 8);
            sum += e;
        }
        for (i = 0; i < n; ++i) {
            const uint64_t t = ((uint64_t)(most - x[i]) * multiplier) >> shift;
            const uint32_t u = t > 65535u ? 65535u : (uint32_t)t, k = u >> 8, f = u & 255u;
            const uint32_t fall = (uint32_t)(table[k] - table[k + 1]);
            const uint32_t e = table[k] - ((fall * f + 128u) >> 8);
            const uint32_t p = (e * 32768u + sum / 2u) / sum;
            y[i] = (int16_t)(p > 32767u ? 32767u : p);
        }
    }
}
