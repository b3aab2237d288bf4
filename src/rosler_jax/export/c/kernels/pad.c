/* Copies an image into a larger one: pixel i of a side comes from source[i] of the input. */
static void rosler_pad_@S@(const @X@ *x, int width, int channels, int rows, int cols,
                           const uint16_t *from_row, const uint16_t *from_col, @X@ *y)
{
    int i, j, c;
    for (i = 0; i < rows; ++i) {
        for (j = 0; j < cols; ++j) {
            for (c = 0; c < channels; ++c) {
                *y++ = x[(from_row[i] * width + from_col[j]) * channels + c];
            }
        }
    }
}
