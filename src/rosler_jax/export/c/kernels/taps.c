/* requires: dsp
   Where the numbers under a window lie; those beyond the image are ones that stand for 0. */
static inline void rosler_taps_@S@(const @X@ *x, int height, int width, int channels, int top, int left,
                               int rows, int cols, int step_y, int step_x, const @X@ *none,
                               const @X@ **taps)
{
    int k, l;
    for (k = 0; k < rows; ++k) {
        const int i = top + k * step_y;
        const int row = i * width * channels;
        for (l = 0; l < cols; ++l) {
            const int j = left + l * step_x;
            *taps++ = i < 0 || i >= height || j < 0 || j >= width ? none : x + row + j * channels;
        }
    }
}
