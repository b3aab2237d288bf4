/* requires: threefry, bounded
   Entry t of a row of a sparse sign sketch: its column, and whether it is negative. */
typedef struct {
    uint32_t key[2], cols, nnz;
} rosler_sparse_sign;

static inline uint32_t rosler_sparse_sign_entry(const rosler_sparse_sign *s, uint32_t row, uint32_t t,
                                                uint32_t *negative)
{
    const uint32_t low = rosler_boundary(t, s->cols, s->nnz);
    const uint32_t high = rosler_boundary(t + 1, s->cols, s->nnz);
    uint32_t word[2];
    rosler_threefry(s->key, row, t, word);
    *negative = word[1] & 1u;
    return low + rosler_bounded(word[0], high - low);
}
