/* requires: clip
   y = clip(((acc + bias) * multiplier + 2^(shift - 1)) >> shift), in 64 bits. */
typedef struct {
    const int32_t *bias;       /* one for each output, or none */
    const int32_t *multiplier; /* one for each output, or one */
    int each;
    int shift;
    int32_t low;
} rosler_finish_i32;

static inline int16_t rosler_apply_i32(const rosler_finish_i32 *f, int32_t acc, int j)
{
    const int32_t m = f->multiplier[f->each ? j : 0];
    if (f->bias) {
        acc += f->bias[j];
    }
    return rosler_clip(((int64_t)acc * m + ((int64_t)1 << (f->shift - 1))) >> f->shift, f->low);
}
