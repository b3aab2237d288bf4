/* requires: dsp
   Values of one byte as 16 bits, less the integer that stands for 0. */
ROSLER_INLINE void rosler_widen_@S@(const @X@ *x, int count, int zero, int16_t *y)
{
    for (; count >= 4; count -= 4, x += 4, y += 4) {
        y[0] = (int16_t)(x[0] - zero);
        y[1] = (int16_t)(x[1] - zero);
        y[2] = (int16_t)(x[2] - zero);
        y[3] = (int16_t)(x[3] - zero);
    }
    for (; count > 0; --count) {
        *y++ = (int16_t)(*x++ - zero);
    }
}
