/* Decisions of a range coder whose probabilities adapt; beyond its end the stream goes on as zeros.
   Sizes up to 7 have 43 contexts, all others 73. */
typedef struct {
    const uint8_t *next, *end;
    uint32_t code, width;
    uint16_t p[ROSLER_CONTEXTS];
    uint8_t n[ROSLER_CONTEXTS];
} rosler_reader;

static uint32_t rosler_reader_byte(rosler_reader *r)
{
    return r->next < r->end ? *r->next++ : 0u;
}

static void rosler_reader_open(rosler_reader *r, const uint8_t *stream, uint32_t bytes)
{
    int k;
    r->next = stream;
    r->end = stream + bytes;
    r->width = 0xFFFFFFFFu;
    r->code = 0;
    for (k = 0; k < 4; ++k) {
        r->code = r->code << 8 | rosler_reader_byte(r);
    }
}

static void rosler_reader_restart(rosler_reader *r)
{
    int k;
    for (k = 0; k < ROSLER_CONTEXTS; ++k) {
        r->p[k] = 32768;
        r->n[k] = 2;
    }
}

static int rosler_ask(rosler_reader *r, int k)
{
    const uint32_t p = r->p[k], n = r->n[k], cut = (r->width >> 16) * p;
    const int yes = r->code < cut;
    if (yes) {
        r->width = cut;
        r->p[k] = (uint16_t)(p + (65535u - p) / n);
    } else {
        r->code -= cut;
        r->width -= cut;
        r->p[k] = (uint16_t)(p - p / n);
    }
    r->n[k] = (uint8_t)(n < 129 ? n + 1 : n);
    while (r->width < 0x1000000u) {
        r->code = r->code << 8 | rosler_reader_byte(r);
        r->width <<= 8;
    }
    return yes;
}
