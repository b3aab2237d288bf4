/* The larger one; NaN where one of them is. */
static inline float rosler_larger_f32(float a, float b)
{
    return !(b <= a) && a == a ? b : a;
}
