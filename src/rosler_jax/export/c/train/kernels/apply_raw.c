/* requires: finish_raw */
static inline int32_t rosler_apply_raw(const rosler_finish_raw *f, int32_t acc, int j)
{
    (void)f;
    (void)j;
    return acc;
}
