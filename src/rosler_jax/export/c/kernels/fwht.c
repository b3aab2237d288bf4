/* The Walsh-Hadamard transform of 2^bits numbers in place, two levels in a pass: additions only. */
static void rosler_fwht_@S@(@ACC@ *a, int bits)
{
    const int n = 1 << bits;
    int h = 1, i, j;
    if (bits & 1) {
        for (i = 0; i < n; i += 2) {
            const @ACC@ p = a[i], q = a[i + 1];
            a[i] = p + q;
            a[i + 1] = p - q;
        }
        h = 2;
    }
    for (; h < n; h *= 4) {
        for (i = 0; i < n; i += 4 * h) {
            @ACC@ *b = a + i;
            for (j = 0; j < h; ++j, ++b) {
                const @ACC@ p = b[0] + b[h], q = b[0] - b[h];
                const @ACC@ r = b[2 * h] + b[3 * h], s = b[2 * h] - b[3 * h];
                b[0] = p + r;
                b[h] = q + s;
                b[2 * h] = p - r;
                b[3 * h] = q - s;
            }
        }
    }
}
