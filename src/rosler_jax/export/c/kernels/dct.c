/* requires: box, waves, apply_@FINISH@
   y = finish(x S), S of cosines: along the width of an image, then along its height. */
static void rosler_dct_@S@(const @X@ *x, int height, int width, int channels, int high, int wide,
                           int cols, int down, int across, int shift, @ACC@ *memory,
                           const rosler_finish_@FINISH@ *f, @X@ *y)
{
    const int longest = height > width ? height : width, line = wide * channels;
    @X@ *quarter = (@X@ *)memory, *wave = quarter + longest + 2, *lines = wave + longest;
    rosler_box at = {1, 1, 0, 0, 1};
    int c, i, j, k, u = -1;
    (void)high;
    if (width > 1) {
        rosler_quarter_@S@(width, across, quarter);
        for (j = 0; j < wide; ++j) {
            rosler_frequency_@S@(quarter, width, j, wave);
            for (i = 0; i < height * channels; ++i) {
                const @X@ *from = x + (i / channels) * width * channels + i % channels;
                @ACC@ acc = 0;
                for (k = 0; k < width; ++k) {
                    acc += (@ACC@)wave[k] * from[k * channels];
                }
                lines[(i / channels) * line + j * channels + i % channels] =
                    rosler_middle_@S@(acc, shift);
            }
        }
        x = lines;
    }
    rosler_quarter_@S@(height, down, quarter);
    for (j = 0, c = 0; j < cols; ++j) {
        const @X@ *from = x + at.v * channels + c;
        @ACC@ acc = 0;
        if (u != at.u) {
            u = at.u;
            rosler_frequency_@S@(quarter, height, u, wave);
        }
        for (k = 0; k < height; ++k) {
            acc += (@ACC@)wave[k] * from[k * line];
        }
        y[j] = rosler_apply_@FINISH@(f, acc, j);
        if (++c == channels) {
            c = 0;
            rosler_box_next(&at, height, width);
        }
    }
}
