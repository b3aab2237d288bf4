static void rosler_scale_f32(float *x, int count, float factor)
{
    int i;
    for (i = 0; i < count; ++i) {
        x[i] *= factor;
    }
}
