/* requires: box, waves, apply_@FINISH@
   Frequency u of n numbers: its second half is its first half backwards, negative if u is odd. */
static inline @ACC@ rosler_cosine_sum_@S@(const @X@ *wave, int u, const @X@ *x, int step, int n,
                                          int shift)
{
    const @X@ *last = x + (n - 1) * step;
    rosler_wide_@S@ near = 0, far = 0;
    int k;
    for (k = 0; k < n / 2; ++k, x += step, last -= step) {
        near += (@ACC@)wave[k] * *x;
        far += (@ACC@)wave[k] * *last;
    }
    if (n % 2) {
        near += (@ACC@)wave[k] * *x;
    }
    return rosler_narrowed_@S@(u % 2 ? near - far : near + far, shift);
}

/* y = finish(x S), S of cosines: along the width of an image, then along its height. */
static void rosler_dct_@S@(const @X@ *x, int height, int width, int channels, int high, int wide,
                           int cols, int middle, int last, uint8_t *memory,
                           const rosler_finish_@FINISH@ *f, @X@ *y)
{
    const int longest = height > width ? height : width, line = wide * channels;
    @X@ *quarter = (@X@ *)memory, *wave = quarter + longest + 2, *lines = wave + (longest + 1) / 2;
    rosler_box at = {1, 1, 0, 0, 1};
    const @X@ *from;
    int c, i, j, u = -1;
    (void)high;
    if (width > 1) {
        rosler_quarter_@S@(width, quarter);
        for (j = 0; j < wide; ++j) {
            rosler_frequency_@S@(quarter, width, j, wave);
            for (i = 0; i < height * channels; ++i) {
                const int row = i / channels;
                from = x + row * width * channels + i % channels;
                lines[row * line + j * channels + i % channels] =
                    (@X@)rosler_cosine_sum_@S@(wave, j, from, channels, width, middle);
            }
        }
        x = lines;
    }
    rosler_quarter_@S@(height, quarter);
    for (j = 0, c = 0; j < cols; ++j) {
        if (u != at.u) {
            u = at.u;
            rosler_frequency_@S@(quarter, height, u, wave);
        }
        from = x + at.v * channels + c;
        y[j] = rosler_apply_@FINISH@(
            f, rosler_cosine_sum_@S@(wave, u, from, line, height, last), j);
        if (++c == channels) {
            c = 0;
            rosler_box_next(&at, height, width);
        }
    }
}
