/* Which window number i of an axis of n is in, that is cut into p: see window_start. */
static inline int rosler_window_of(int n, int p, int i)
{
    const int each = n / p, longer = n % p * (each + 1);
    return i < longer ? i / (each + 1) : n % p + (i - longer) / each;
}
