/* requires: fixed_round
   w -= v 2^-shift. */
static void rosler_fixed_update(const int32_t *v, int count, int shift, int32_t *w)
{
    const int64_t limit = 2147450879; /* the upper half can be rounded */
    int i;
    for (i = 0; i < count; ++i) {
        const int64_t x = w[i] - rosler_fixed_round(v[i], shift);
        w[i] = (int32_t)(x < -limit ? -limit : x > limit ? limit : x);
    }
}
