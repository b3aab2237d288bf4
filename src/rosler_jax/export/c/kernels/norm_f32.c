/* Every row less its mean, if centered, divided by the root of its mean square; then scale and bias. */
static void rosler_norm_f32(const float *x, int rows, int n, int center, float epsilon,
                            const float *scale, const float *bias, float *y)
{
    int r, i;
    for (r = 0; r < rows; ++r, x += n, y += n) {
        float mean = 0.0f, square = 0.0f, factor;
        if (center) {
            for (i = 0; i < n; ++i) {
                mean += x[i];
            }
            mean /= (float)n;
        }
        for (i = 0; i < n; ++i) {
            const float v = x[i] - mean;
            y[i] = v;
            square += v * v;
        }
        factor = 1.0f / sqrtf(square / (float)n + epsilon);
        for (i = 0; i < n; ++i) {
            const float v = y[i] * (scale ? factor * scale[i] : factor);
            y[i] = bias ? v + bias[i] : v;
        }
    }
}
