/* requires: upper
   The same of four sums. */
ROSLER_INLINE void rosler_upper4@T@(const int32_t acc[4], const int32_t *m,
                                    const rosler_finish_i32 *f, @Y@ *y)
{
    const int32_t p = rosler_scaled(acc[0], m[0], f->shift, f->zero);
    const int32_t q = rosler_scaled(acc[1], m[f->each], f->shift, f->zero);
    const int32_t r = rosler_scaled(acc[2], m[2 * f->each], f->shift, f->zero);
    const int32_t s = rosler_scaled(acc[3], m[3 * f->each], f->shift, f->zero);
    y[0] = (@Y@)rosler_clip(p, f->limits);
    y[1] = (@Y@)rosler_clip(q, f->limits);
    y[2] = (@Y@)rosler_clip(r, f->limits);
    y[3] = (@Y@)rosler_clip(s, f->limits);
}
