static void rosler_affine_f32(const float *x, int count, int channels, const float *center,
                              const float *factor, float *y)
{
    int i, j = 0;
    for (i = 0; i < count; ++i) {
        y[i] = (x[i] - center[j]) * factor[j];
        j = j + 1 < channels ? j + 1 : 0;
    }
}
