/* requires: @COPY@
   The pixels under a window, gathered; those beyond the image are zero. Neither dilation nor groups:
   a row of the window lies in one piece. */
static inline void rosler_patch_@S@(const @SOURCE@ *x, int height, int width, int channels, int top,
                                    int left, int rows, int cols, @X@ *patch)
{
    const int row = width * channels, piece = cols * channels;
    const int before = left < 0 ? -left : 0;
    const int after = left + cols > width ? left + cols - width : 0;
    int k;
    for (k = 0; k < rows; ++k, patch += piece) {
        const int i = top + k;
        if (i < 0 || i >= height || before >= cols || after >= cols) {
            rosler_zero_@S@(patch, piece);
        } else if (before == 0 && after == 0) {
            rosler_copy_@S@(x + i * row + left * channels, piece, patch);
        } else {
            const int inside = cols - before - after;
            rosler_zero_@S@(patch, before * channels);
            rosler_copy_@S@(x + i * row + (left + before) * channels, inside * channels,
                            patch + before * channels);
            rosler_zero_@S@(patch + (before + inside) * channels, after * channels);
        }
    }
}
