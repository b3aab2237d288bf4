/* requires: apply_@FINISH@, larger_@S@
   Max, or finish of the sum, over windows that do not overlap. */
static void rosler_pool_@S@(const @X@ *x, int width, int channels, int rows, int cols, int high,
                            int wide, int mean, const rosler_finish_@FINISH@ *f, @X@ *y)
{
    int i, j, k, l, c;
    for (i = 0; i < rows; ++i) {
        for (j = 0; j < cols; ++j) {
            for (c = 0; c < channels; ++c) {
                const @X@ *corner = x + (i * high * width + j * wide) * channels + c;
                @X@ most = *corner;
                @ACC@ sum = 0;
                for (k = 0; k < high; ++k) {
                    for (l = 0; l < wide; ++l) {
                        const @X@ v = corner[(k * width + l) * channels];
                        most = rosler_larger_@S@(most, v);
                        sum += (@ACC@)v;
                    }
                }
                *y++ = mean ? rosler_apply_@FINISH@(f, sum, 0) : most;
            }
        }
    }
}
