static void rosler_fixed_widen(const int16_t *x, int count, int32_t *y)
{
    int i;
    for (i = 0; i < count; ++i) {
        y[i] = x[i];
    }
}
