/* requires: matrix, apply_@FINISH@
   y = finish(W x) while W is decoded, a row for each output. */
ROSLER_APART void rosler_stream_outputs_@S@(const @X@ *x, int m, int n, const uint8_t *stream, int bytes,
                                      int levels, @MORE@const rosler_finish_@FINISH@ *f,
                                      unsigned char *memory, @Y@ *y)
{
    rosler_reader reader;
    rosler_coded s;
    int8_t *row = rosler_matrix(&s, &reader, stream, bytes, m, levels, memory);
    int i, j;
    for (j = 0; j < n; ++j) {
        @ACC@ acc = 0;
        if (rosler_coded_row(&s, row)) {
            for (i = 0; i < m; ++i) {
                acc += @WEIGHT@ * x[i];
            }
        }
        y[j] = (@Y@)rosler_apply_@FINISH@(f, acc, j);
    }
}
