/* requires: clip
   finish_i32 from a 64-bit accumulator; the product stays below 2^62, as rosler-jax proved. */
typedef struct {
    const int64_t *bias;
    const int32_t *multiplier;
    int each;
    int shift;
    int32_t low;
} rosler_finish_i64;

static inline int16_t rosler_apply_i64(const rosler_finish_i64 *f, int64_t acc, int j)
{
    const int32_t m = f->multiplier[f->each ? j : 0];
    if (f->bias) {
        acc += f->bias[j];
    }
    return rosler_clip((acc * m + ((int64_t)1 << (f->shift - 1))) >> f->shift, f->low);
}
