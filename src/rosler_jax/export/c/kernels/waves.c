/* requires: quarter_@S@
   y[i] = cosine of start + i step quarters of a wave's n. */
static inline void rosler_waves_@S@(const @X@ *q, int n, int start, int step, int count, @X@ *y)
{
    int i, k = start;
    for (i = 0; i < count; ++i) {
        const int half = k > 2 * n ? 4 * n - k : k;
        y[i] = half > n ? (@X@)-q[2 * n - half] : q[half];
        k += step;
        if (k >= 4 * n) {
            k -= 4 * n;
        }
    }
}

/* The first half of frequency u of an axis of n numbers. */
static inline void rosler_frequency_@S@(const @X@ *q, int n, int u, @X@ *y)
{
    rosler_waves_@S@(u ? q : q + n + 1, n, u, u ? 2 * u : 0, (n + 1) / 2, y);
}
