/* A function by a table of 256 numbers, one for each input. */
static void rosler_lookup@S@(const int8_t *x, int count, const @Y@ *table, @Y@ *y)
{
    int i;
    for (i = 0; i < count; ++i) {
        y[i] = table[x[i] + 128];
    }
}
