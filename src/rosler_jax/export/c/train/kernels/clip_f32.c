/* requires: length_f32, scale_f32
   One scalar for all gradients: sketches of one matrix stay sketches of one matrix. */
static void rosler_clip_f32(float *g, int count, float most)
{
    const float norm = rosler_length_f32(g, count);
    if (!(norm <= most)) { /* NaN, too: it spreads to all of them */
        rosler_scale_f32(g, count, most / norm);
    }
}
