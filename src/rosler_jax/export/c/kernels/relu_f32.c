/* NaN stays NaN. */
static void rosler_relu_f32(const float *x, int count, float *y)
{
    int i;
    for (i = 0; i < count; ++i) {
        y[i] = x[i] <= 0.0f ? 0.0f : x[i];
    }
}
