/* requires: threefry
   The numbers of a delta that weights share: every k in a row are all k, rotated, with signs. */
typedef struct {
    uint32_t rotate[2], sign[2];
    uint32_t k;
    int shared;
    float scale;
} rosler_delta;

static float rosler_shared(const rosler_delta *d, const float *z, uint32_t row)
{
    uint32_t word[2];
    uint32_t at;
    if (!d->shared) {
        return z[row];
    }
    rosler_threefry(d->rotate, row / d->k, 0, word);
    at = (row + (uint32_t)(((uint64_t)word[0] * d->k) >> 32)) % d->k;
    rosler_threefry(d->sign, row / 64, 0, word);
    return (word[row / 32 % 2] >> row % 32) & 1u ? -(z[at] * d->scale) : z[at] * d->scale;
}
