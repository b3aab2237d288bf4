/* y += rate x. */
static void rosler_add_f32(const float *x, int count, float rate, float *y)
{
    int i;
    for (i = 0; i < count; ++i) {
        y[i] += rate * x[i];
    }
}
