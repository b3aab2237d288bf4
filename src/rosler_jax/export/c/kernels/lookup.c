/* A function by a table of 513 numbers, with linear interpolation. */
static void rosler_lookup@S@(const int16_t *x, int count, const @Y@ *table, @Y@ *y)
{
    int i;
    for (i = 0; i < count; ++i) {
        const int32_t u = x[i] + 32768, k = u >> 7;
        const int32_t step = (table[k + 1] - table[k]) * (u & 127);
        y[i] = (@Y@)(table[k] + ((step + 64) >> 7));
    }
}
