static void rosler_tanh_f32(const float *x, int count, float *y)
{
    int i;
    for (i = 0; i < count; ++i) {
        y[i] = tanhf(x[i]);
    }
}
