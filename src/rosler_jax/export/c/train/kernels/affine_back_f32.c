static void rosler_affine_back_f32(int count, int channels, const float *factor, float *d)
{
    int i, j = 0;
    for (i = 0; i < count; ++i) {
        d[i] *= factor[j];
        j = j + 1 < channels ? j + 1 : 0;
    }
}
