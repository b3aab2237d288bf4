/* requires: matrix
   A coded matrix, decoded to floats: times one scale, or those of inputs or of outputs. */
ROSLER_APART void rosler_unpack_f32(const uint8_t *stream, int bytes, int n, int m, int levels,
                              unsigned char *memory, const float *scale, int by_input, int by_output,
                              float *w)
{
    rosler_reader reader;
    rosler_coded s;
    int8_t *row = rosler_matrix(&s, &reader, stream, bytes, m, levels, memory);
    int i, j;
    for (j = 0; j < n; ++j) {
        rosler_coded_row(&s, row);
        for (i = 0; i < m; ++i) {
            *w++ = (float)row[i] * scale[i * by_input + j * by_output];
        }
    }
}
