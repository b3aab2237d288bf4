/* requires: shared
   Weights with a number of a delta added to each; of the base alone without numbers. */
static void rosler_tune_full(const rosler_delta *d, const float *z, uint32_t row, int m, int n,
                             const float *base, float *w)
{
    int i, j;
    for (i = 0; i < m; ++i) {
        for (j = 0; j < n; ++j, ++row) {
            w[j * m + i] = base[j * m + i] + (z ? rosler_shared(d, z, row) : 0.0f);
        }
    }
}
