/* y = clip(((acc + bias) * multiplier + 2^(shift - 1)) >> shift), in 64 bits: see integer.py. */
typedef char rosler_shifts_keep_the_sign[(-1 >> 1) == -1 ? 1 : -1];

typedef struct {
    const int32_t *bias;       /* one for each output, or none */
    const int32_t *multiplier; /* one for each output, or one */
    int each;
    int shift;
    int32_t low;
} rosler_finish_i32;

static inline int16_t rosler_clip(int64_t y, int32_t low)
{
    return (int16_t)(y < low ? low : y > 32767 ? 32767 : y);
}

static inline int16_t rosler_apply_i32(const rosler_finish_i32 *f, int32_t acc, int j)
{
    const int32_t m = f->multiplier[f->each ? j : 0];
    if (f->bias) {
        acc += f->bias[j];
    }
    return rosler_clip(((int64_t)acc * m + ((int64_t)1 << (f->shift - 1))) >> f->shift, f->low);
}
