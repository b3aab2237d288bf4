/* Real inputs as @NAME@predict takes them: divided by @MACRO@INPUT@M@_SCALE, rounded to the
   nearest, halves to even, and cut off at the limits of their type, beyond which a cast is
   undefined. NaN becomes 0. Returns how many lay beyond the limits or were NaN: if they are more
   than a few, the inputs are not such as the model was calibrated with, or a sensor is dead. */
static inline int @NAME@quantize@N@(const float *x, @NAME@input@N@ *q)
{
    int i, lost = 0;
    for (i = 0; i < @MACRO@INPUT@M@_SIZE; ++i) {
        const float v = x[i] * @INVERSE@;
        int32_t t = v >= 0.0f ? @HIGH@ : v < 0.0f ? @LOW@ : 0;
        if (v >= @LOW@.0f - 0.5f && v < @HIGH@.0f + 0.5f) {
            float rest;
            t = (int32_t)v;
            rest = v - (float)t;
            t += rest > 0.5f || (rest >= 0.5f && t % 2 != 0);
            t -= rest < -0.5f || (rest <= -0.5f && t % 2 != 0);
        } else {
            ++lost;
        }
        q[i] = (@NAME@input@N@)t;
    }
    return lost;
}
