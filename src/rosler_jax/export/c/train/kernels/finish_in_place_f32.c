/* requires: apply_f32 */
static void rosler_finish_in_place_f32(const rosler_finish_f32 *f, int count, float *y)
{
    int i;
    for (i = 0; i < count; ++i) {
        y[i] = rosler_apply_f32(f, y[i], i);
    }
}
