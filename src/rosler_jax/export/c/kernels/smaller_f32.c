/* The smaller one; NaN where one of them is. */
static inline float rosler_smaller_f32(float a, float b)
{
    return !(b >= a) && a == a ? b : a;
}
