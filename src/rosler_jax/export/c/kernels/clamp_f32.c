/* NaN stays NaN. */
static inline float rosler_clamp_f32(float x, float low, float high)
{
    const float y = x < low ? low : x;
    return y > high ? high : y;
}
