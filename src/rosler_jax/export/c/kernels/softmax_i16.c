/* Probabilities in units of 2^-15: e^-t from a table of 257 numbers on 0 <= t < 16, interpolated. */
void rosler_softmax(const rosler_output *y, uint16_t *p)
{
    int32_t most = y[0];
    uint32_t sum = 0;
    int i;
    for (i = 1; i < ROSLER_OUTPUT_SIZE; ++i) {
        most = y[i] > most ? y[i] : most;
    }
    for (i = 0; i < ROSLER_OUTPUT_SIZE; ++i) {
        const uint64_t t = ((uint64_t)(most - y[i]) * @MULTIPLIER@u) >> @SHIFT@;
        const uint32_t u = t > 65535u ? 65535u : (uint32_t)t, k = u >> 8, f = u & 255u;
        const uint32_t fall = (uint32_t)(rosler_exp[k] - rosler_exp[k + 1]);
        p[i] = (uint16_t)(rosler_exp[k] - ((fall * f + 128u) >> 8));
        sum += p[i];
    }
    for (i = 0; i < ROSLER_OUTPUT_SIZE; ++i) {
        p[i] = (uint16_t)(((uint32_t)p[i] * 32768u + sum / 2u) / sum);
    }
}
