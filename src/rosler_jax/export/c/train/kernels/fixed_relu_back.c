static void rosler_fixed_relu_back(const int16_t *y, int count, int16_t *d)
{
    int i;
    for (i = 0; i < count; ++i) {
        d[i] = (int16_t)(y[i] > 0 ? d[i] : 0);
    }
}
