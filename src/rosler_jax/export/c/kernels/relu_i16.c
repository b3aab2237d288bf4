static void rosler_relu_i16(const int16_t *x, int count, int16_t *y)
{
    int i;
    for (i = 0; i < count; ++i) {
        y[i] = (int16_t)(x[i] > 0 ? x[i] : 0);
    }
}
