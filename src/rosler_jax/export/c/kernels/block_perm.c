/* requires: threefry, bijection, bounded
   Entry t of a row of a BlockPerm-SJLT sketch; begin() makes its three permutations. */
typedef struct {
    uint32_t key[2], inner_key[2], outer_key[2], shift_key[2];
    uint32_t rows, cols, blocks, kappa, nnz;
    int bits;
} rosler_block_perm_seed;

typedef struct {
    const rosler_block_perm_seed *s;
    rosler_bijection inner, outer, shift;
} rosler_block_perm;

static void rosler_block_perm_begin(rosler_block_perm *p, const rosler_block_perm_seed *s)
{
    p->s = s;
    rosler_bijection_of(&p->inner, s->inner_key, s->bits);
    rosler_bijection_of(&p->outer, s->outer_key, s->bits);
    rosler_bijection_of(&p->shift, s->shift_key, s->bits);
}

static inline uint32_t rosler_block_perm_entry(const rosler_block_perm *p, uint32_t row, uint32_t t,
                                               uint32_t *negative)
{
    const rosler_block_perm_seed *s = p->s;
    /* The greatest block that begins at or before the row. */
    uint32_t g = (uint32_t)(((uint64_t)row * s->blocks) / s->rows), block, start, width, low, high;
    uint32_t word[2];
    while (g + 1 < s->blocks && rosler_boundary(g + 1, s->rows, s->blocks) <= row) {
        ++g;
    }
    while (rosler_boundary(g, s->rows, s->blocks) > row) {
        --g;
    }
    block = rosler_permute(&p->inner, g) + rosler_permute(&p->shift, t / s->nnz);
    block = rosler_permute(&p->outer, block & (s->blocks - 1u));
    start = rosler_boundary(block, s->cols, s->blocks);
    width = rosler_boundary(block + 1, s->cols, s->blocks) - start;
    low = (t % s->nnz) * width / s->nnz;
    high = (t % s->nnz + 1) * width / s->nnz;
    rosler_threefry(s->key, row, t, word);
    *negative = word[1] & 1u;
    return start + low + rosler_bounded(word[0], high - low);
}
