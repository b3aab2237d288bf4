/* requires: finish_i32 */
static inline int16_t rosler_apply_i32(const rosler_finish_i32 *f, int32_t acc, int j)
{
    const int32_t m = f->multiplier[f->each ? j : 0];
    if (f->bias) {
        acc += f->bias[j];
    }
    acc = (int32_t)(((int64_t)acc * m + ((int64_t)1 << (f->shift - 1))) >> f->shift);
    return rosler_clip(acc + f->zero, f->limits);
}
