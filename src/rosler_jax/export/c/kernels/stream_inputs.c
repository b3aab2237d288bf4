/* requires: matrix, apply_@FINISH@
   y = finish(W x) while W is decoded, a row for each input: sums of all outputs in memory. */
ROSLER_APART void rosler_stream_inputs_@S@(const @X@ *x, int m, int n, const uint8_t *stream, int bytes,
                                     int levels, @MORE@const rosler_finish_@FINISH@ *f,
                                     unsigned char *memory, @Y@ *y)
{
    @ACC@ *acc = (@ACC@ *)memory;
    rosler_reader reader;
    rosler_coded s;
    const int8_t *row = rosler_matrix(&s, &reader, stream, bytes, n, levels, memory + 4 * n);
    int i, j;
    for (j = 0; j < n; ++j) {
        acc[j] = 0;
    }
    for (i = 0; i < m; ++i) {
        if (rosler_coded_row(&s, (int8_t *)row)) {
            for (j = 0; j < n; ++j) {
                acc[j] += @WEIGHT@ * x[i];
            }
        }
    }
    for (j = 0; j < n; ++j) {
        y[j] = (@Y@)rosler_apply_@FINISH@(f, acc[j], j);
    }
}
