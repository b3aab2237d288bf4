static void rosler_gelu_back_f32(const float *x, int count, float *d)
{
    int i;
    for (i = 0; i < count; ++i) {
        const float v = x[i];
        const float t = tanhf(0.7978845608f * (v + 0.044715f * (v * v * v)));
        const float slope = 0.7978845608f * (1.0f + 0.134145f * (v * v));
        d[i] *= 0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * slope;
    }
}
