/* requires: apply_i32
   Standardised inputs: with more bits, then back. */
static void rosler_shifted(const int16_t *x, int count, int channels, int left, const int32_t *bias,
                           const rosler_finish_i32 *f, int16_t *y)
{
    int i, j = 0;
    for (i = 0; i < count; ++i) {
        y[i] = rosler_apply_i32(f, x[i] * (1 << left) + bias[channels > 1 ? j : 0], j);
        j = j + 1 < channels ? j + 1 : 0;
    }
}
