/* requires: tile_dot, upper
   y = finish(W x) for up to four pixels that lie side by side: rows of W one after the other. */
static void rosler_tile@T@(const rosler_slot *tile, int words, int n, const uint32_t *w,
                           const rosler_finish_i32 *f, int pixels, @Y@ *y)
{
    const int32_t *bias = f->bias, *multiplier = f->multiplier;
    const int shift = f->shift - 32;
    const int32_t half = ((int32_t)1 << (shift - 1)) + f->zero * ((int32_t)1 << shift);
    int j, p;
    for (j = 0; j < n; ++j, ++y) {
        const int32_t start = bias ? *bias++ : 0, m = *multiplier++;
        int32_t acc[4];
        acc[0] = acc[1] = acc[2] = acc[3] = start;
        w = rosler_tile_dot(tile, words, w, acc);
        if (pixels == 4) {
            y[0] = (@Y@)rosler_clip(((int32_t)(((int64_t)acc[0] * m) >> 32) + half) >> shift, @LIMITS@);
            y[n] = (@Y@)rosler_clip(((int32_t)(((int64_t)acc[1] * m) >> 32) + half) >> shift, @LIMITS@);
            y[2 * n] = (@Y@)rosler_clip(((int32_t)(((int64_t)acc[2] * m) >> 32) + half) >> shift,
                                        @LIMITS@);
            y[3 * n] = (@Y@)rosler_clip(((int32_t)(((int64_t)acc[3] * m) >> 32) + half) >> shift,
                                        @LIMITS@);
        } else {
            for (p = 0; p < pixels; ++p) {
                const int32_t v = ((int32_t)(((int64_t)acc[p] * m) >> 32) + half) >> shift;
                y[p * n] = (@Y@)rosler_clip(v, @LIMITS@);
            }
        }
    }
}
