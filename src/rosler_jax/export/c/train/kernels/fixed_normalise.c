/* requires: fixed_round, fixed_clip
   Scales an error so that it fills 16 bits; gives its exponent. */
static int rosler_fixed_normalise(const int32_t *t, int count, int e, int16_t *d)
{
    uint32_t most = 0;
    int i, shift = -15;
    for (i = 0; i < count; ++i) {
        const uint32_t size = t[i] < 0 ? 0u - (uint32_t)t[i] : (uint32_t)t[i];
        most = size > most ? size : most;
    }
    if (most == 0) {
        shift = 0;
    }
    for (; most; most >>= 1) {
        ++shift;
    }
    for (i = 0; i < count; ++i) {
        d[i] = rosler_fixed_clip(rosler_fixed_round(t[i], shift));
    }
    return e - shift;
}
