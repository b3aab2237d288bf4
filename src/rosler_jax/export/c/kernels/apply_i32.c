/* requires: finish_i32 */
static inline int16_t rosler_apply_i32(const rosler_finish_i32 *f, int32_t acc, int j)
{
    const int32_t m = f->multiplier[f->each ? j : 0];
    if (f->bias) {
        acc += f->bias[j];
    }
    return rosler_clip((int32_t)(((int64_t)acc * m + f->half) >> f->shift), f->limits);
}
