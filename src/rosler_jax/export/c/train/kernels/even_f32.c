/* requires: length_f32, scale_f32
   Gives three factors of a product the same norm; the product stays. */
static void rosler_even_f32(float *c, int of_c, float *u, int of_u, float *r, int of_r)
{
    const float c_norm = rosler_length_f32(c, of_c), u_norm = rosler_length_f32(u, of_u);
    const float r_norm = rosler_length_f32(r, of_r);
    const float even = cbrtf(c_norm) * cbrtf(u_norm) * cbrtf(r_norm);
    if (even > 0.0f) {
        rosler_scale_f32(c, of_c, even / c_norm);
        rosler_scale_f32(u, of_u, even / u_norm);
        rosler_scale_f32(r, of_r, even / r_norm);
    }
}
