static void rosler_bytes(const uint8_t *x, int count, int16_t *y)
{
    for (; count >= 4; count -= 4, x += 4, y += 4) {
        y[0] = x[0];
        y[1] = x[1];
        y[2] = x[2];
        y[3] = x[3];
    }
    for (; count > 0; --count) {
        *y++ = *x++;
    }
}
