/* requires: finish_f32 */
static inline float rosler_apply_f32(const rosler_finish_f32 *f, float acc, int j)
{
    float y = acc * f->scale;
    if (f->bias) {
        y += f->bias[j];
    }
    return y;
}
