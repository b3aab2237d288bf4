/* requires: box, waves, apply_@FINISH@
   y = finish(z S^T), S of cosines: a line of an image at a time. */
static void rosler_dct_transpose_@S@(const @X@ *z, int height, int width, int channels, int high,
                                     int wide, int cols, int middle, int last, uint8_t *memory,
                                     const rosler_finish_@FINISH@ *f, @X@ *y)
{
    const int line = wide * channels;
    rosler_wide_@S@ *sums = (rosler_wide_@S@ *)memory;
    @X@ *numbers = (@X@ *)(sums + line), *tall = numbers + line, *broad = tall + height + 2;
    @X@ *wave = broad + width + 2;
    int c, i, j, k;
    rosler_quarter_@S@(height, tall);
    rosler_quarter_@S@(width, broad);
    for (i = 0; i < height; ++i) {
        rosler_box at = {1, 1, 0, 0, 1};
        for (k = 0; k < line; ++k) {
            sums[k] = 0;
        }
        rosler_waves_@S@(tall, height, 0, 2 * i + 1, high, wave);
        wave[0] = tall[height + 1];
        for (j = 0, c = 0; j < cols; ++j) {
            sums[at.v * channels + c] += (@ACC@)wave[at.u] * z[j];
            if (++c == channels) {
                c = 0;
                rosler_box_next(&at, height, width);
            }
        }
        if (width == 1) {
            y[i] = rosler_apply_@FINISH@(f, rosler_narrowed_@S@(sums[0], last), i);
            continue;
        }
        for (k = 0; k < line; ++k) {
            numbers[k] = (@X@)rosler_narrowed_@S@(sums[k], middle);
        }
        for (j = 0; j < width; ++j) {
            rosler_waves_@S@(broad, width, 0, 2 * j + 1, wide, wave);
            wave[0] = broad[width + 1];
            for (c = 0; c < channels; ++c) {
                const int at_y = (i * width + j) * channels + c;
                rosler_wide_@S@ acc = 0;
                for (k = 0; k < wide; ++k) {
                    acc += (@ACC@)wave[k] * numbers[k * channels + c];
                }
                y[at_y] = rosler_apply_@FINISH@(f, rosler_narrowed_@S@(acc, last), at_y);
            }
        }
    }
}
