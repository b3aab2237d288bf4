static void rosler_fixed_mantissa(int32_t *t, int count, int32_t mantissa)
{
    int i;
    for (i = 0; i < count; ++i) {
        t[i] = (int32_t)(((int64_t)t[i] * mantissa + 16384) >> 15);
    }
}
