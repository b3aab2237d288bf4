/* The Euclidean norm, with the squares summed in blocks: long sums lose digits. */
static float rosler_length_f32(const float *x, int count)
{
    float sum = 0.0f, block = 0.0f;
    int i;
    for (i = 0; i < count; ++i) {
        block += x[i] * x[i];
        if (i % 256 == 255) {
            sum += block;
            block = 0.0f;
        }
    }
    return sqrtf(sum + block);
}
