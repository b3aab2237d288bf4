/* requires: matrix
   A coded matrix, decoded to the words that products with weights of @BITS@ bits read: of zeros at
   first, so that what fills up a row is zero, too. */
ROSLER_APART void rosler_unpack_@S@(const uint8_t *stream, int bytes, int n, int m, int levels,
                              unsigned char *memory, uint32_t *w)
{
    const int words = (m + @UNIT@ - 1) / @UNIT@, blocked = @BLOCKED@;
    rosler_reader reader;
    rosler_coded s;
    int8_t *row = rosler_matrix(&s, &reader, stream, bytes, m, levels, memory);
    int i, j;
    for (j = 0; j < n; ++j) {
        const int step = j < blocked ? 4 : 1;
        uint32_t *const first = w + (j < blocked ? j / 4 * 4 * words + j % 4 : j * words);
        rosler_coded_row(&s, row);
        for (i = 0; i < m; ++i) {
            const int k = i % @UNIT@;
            const uint32_t field = (uint32_t)row[i] & @MASK@;
            uint32_t *const to = first + i / @UNIT@ * step;
            *to = (k ? *to : @EMPTY@) ^ field << (@BITS@ * (@PLACE@));
        }
    }
}
