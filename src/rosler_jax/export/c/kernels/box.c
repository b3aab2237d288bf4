/* Frequencies (u, v) as a box of them grows by a row or a column. */
typedef struct {
    int high, wide, u, v, row;
} rosler_box;

static inline void rosler_box_next(rosler_box *b, int height, int width)
{
    if (b->row ? ++b->v < b->wide : ++b->u < b->high) {
        return;
    }
    b->row = b->high * width <= b->wide * height;
    b->u = b->row ? b->high++ : 0;
    b->v = b->row ? 0 : b->wide++;
}
