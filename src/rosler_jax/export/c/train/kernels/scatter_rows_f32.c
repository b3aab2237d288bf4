/* Adds rows at positions; those beyond the table are dropped. */
static void rosler_scatter_rows_f32(const int32_t *ids, const float *rows, int n, int width,
                                    int size, float *y)
{
    int i, j;
    for (i = 0; i < n; ++i, rows += width) {
        for (j = 0; ids[i] >= 0 && ids[i] < size && j < width; ++j) {
            y[ids[i] * width + j] += rows[j];
        }
    }
}
