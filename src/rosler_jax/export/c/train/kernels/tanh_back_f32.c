static void rosler_tanh_back_f32(const float *y, int count, float *d)
{
    int i;
    for (i = 0; i < count; ++i) {
        d[i] *= 1.0f - y[i] * y[i];
    }
}
