/* requires: threefry
   A keyed permutation of 0 .. 2^bits - 1 in eight rounds. */
typedef struct {
    uint32_t add[8], multiply[8], mask;
    int half;
} rosler_bijection;

static void rosler_bijection_of(rosler_bijection *p, const uint32_t key[2], int bits)
{
    uint32_t r, word[2];
    for (r = 0; r < 8; ++r) {
        rosler_threefry(key, r, 0, word);
        p->add[r] = word[0];
        p->multiply[r] = word[1] | 1u;
    }
    p->mask = (1u << bits) - 1u;
    p->half = (bits + 1) / 2;
}

static inline uint32_t rosler_permute(const rosler_bijection *p, uint32_t x)
{
    int r;
    for (r = 0; r < 8; ++r) {
        x = ((x + p->add[r]) * p->multiply[r]) & p->mask;
        x ^= x >> p->half;
    }
    return x;
}
