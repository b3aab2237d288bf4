/* requires: shared
   Weights with left V right added, V the r x r numbers of a delta from row on; left of r numbers an
   input, right of r an output. */
static void rosler_tune_core(const rosler_delta *d, const float *z, uint32_t row, int m, int n,
                             int r, const float *left, const float *right, float *product,
                             const float *base, float *w)
{
    int a, b, i, j;
    for (j = 0; j < n; ++j) {
        for (a = 0; a < r; ++a) {
            product[a] = 0.0f;
            for (b = 0; z && b < r; ++b) {
                product[a] += rosler_shared(d, z, row + (uint32_t)(a * r + b)) * right[j * r + b];
            }
        }
        for (i = 0; i < m; ++i) {
            float sum = 0.0f;
            for (a = 0; a < r; ++a) {
                sum += left[i * r + a] * product[a];
            }
            w[j * m + i] = base[j * m + i] + sum;
        }
    }
}
