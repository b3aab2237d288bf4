static void rosler_fixed_decay(int32_t *v, int count, int32_t momentum)
{
    int i;
    for (i = 0; i < count; ++i) {
        v[i] = (int32_t)(((int64_t)v[i] * momentum + 16384) >> 15);
    }
}
