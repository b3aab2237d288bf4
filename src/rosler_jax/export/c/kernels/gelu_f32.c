static void rosler_gelu_f32(const float *x, int count, float *y)
{
    int i;
    for (i = 0; i < count; ++i) {
        const float v = x[i];
        y[i] = 0.5f * v * (1.0f + tanhf(0.7978845608f * (v + 0.044715f * (v * v * v))));
    }
}
