/* Where window k begins on an axis of n numbers cut into p: the first may be longer by one. */
static inline int rosler_window_start(int n, int p, int k)
{
    return k * (n / p) + (k < n % p ? k : n % p);
}
