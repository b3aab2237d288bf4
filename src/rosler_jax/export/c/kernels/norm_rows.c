/* requires: limit
   Rows over the root of their mean square, about their mean if center; see the specification. */
static void rosler_norm_rows_@S@(const @X@ *x, int rows, int n, int center, int zero, int64_t epsilon,
                                 const int32_t *m, const int64_t *offset, int shift, int low,
                                 int high, @Y@ *y)
{
    for (; rows > 0; --rows, x += n, y += n) {
        int64_t sum = 0, v = 0, factor;
        int32_t mean = 0;
        uint64_t root = 0, square;
        int i, t = 0;
        for (i = 0; center && i < n; ++i) {
            sum += (x[i] - zero) * 64;
        }
        if (center) { /* rounded down, as all divisions */
            sum += n / 2;
            mean = (int32_t)(sum >= 0 ? sum / n : -((-sum + n - 1) / n));
        }
        for (i = 0; i < n; ++i) {
            const int64_t d = (x[i] - zero) * 64 - mean;
            v += d * d;
        }
        v = v / n + epsilon;
        v = v < 1 ? 1 : v;
        while (v < (int64_t)1 << (60 - t)) {
            t += 2;
        }
        square = (uint64_t)v << t;
        for (i = 30; i >= 0; --i) {
            const uint64_t more = root | (uint64_t)1 << i;
            root = more * more <= square ? more : root;
        }
        factor = ((int64_t)1 << 61) / (int64_t)root;
        for (i = 0; i < n; ++i) {
            const int64_t z = (((x[i] - zero) * 64 - mean) * factor) >> (45 - t / 2);
            const int64_t u = (z * m[i] + offset[i]) >> shift;
            y[i] = (@Y@)(u < low ? low : u > high ? high : u);
        }
    }
}
