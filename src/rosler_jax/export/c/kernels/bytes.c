static void rosler_bytes(const uint8_t *x, int count, int16_t *y)
{
    int i;
    for (i = 0; i < count; ++i) {
        y[i] = x[i];
    }
}
