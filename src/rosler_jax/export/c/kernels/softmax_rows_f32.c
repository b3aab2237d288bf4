/* requires: larger_f32
   Softmax of every row, or its logarithm. */
static void rosler_softmax_rows_f32(const float *x, int rows, int n, int logarithm, float *y)
{
    int r, i;
    for (r = 0; r < rows; ++r, x += n, y += n) {
        float most = x[0], sum = 0.0f;
        for (i = 1; i < n; ++i) {
            most = rosler_larger_f32(most, x[i]);
        }
        for (i = 0; i < n; ++i) {
            const float v = x[i] - most, e = expf(v);
            sum += e;
            y[i] = logarithm ? v : e;
        }
        if (logarithm) {
            sum = logf(sum);
            for (i = 0; i < n; ++i) {
                y[i] -= sum;
            }
        } else {
            for (i = 0; i < n; ++i) {
                y[i] /= sum;
            }
        }
    }
}
