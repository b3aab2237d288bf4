static void rosler_relu_back_f32(const float *y, int count, float *d)
{
    int i;
    for (i = 0; i < count; ++i) {
        d[i] = y[i] > 0.0f ? d[i] : 0.0f;
    }
}
