/* requires: range_reader
   A coded matrix of small integers, row by row: what a stream says next. Code for values that see
   their neighbours (smooth), or do not (plain), is there if a matrix of this file has such. */
typedef struct {
    rosler_reader *reader;
    uint16_t *activity; /* of each column */
    int columns, levels, smooth, stride, running, so_far, live;
} rosler_coded;

static const uint8_t rosler_coded_level[32] = {0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7,
                                               8, 8, 8, 8, 8, 8, 8, 8, 9, 9, 9, 9, 9, 9, 9, 9};

/* Whether the next matrix is coded. The activity of its columns is zero, or what was before. */
static int rosler_coded_start(rosler_coded *s)
{
    rosler_reader *r = s->reader;
    int k, coded;
    rosler_reader_restart(r);
    coded = rosler_ask(r, 0);
    s->smooth = s->stride = s->running = s->so_far = s->live = 0;
    if (coded) {
        rosler_ask(r, 0); /* whether rows and columns change places, which the caller knows */
        s->smooth = rosler_ask(r, 0);
        s->running = s->smooth ? 0 : rosler_ask(r, 0);
        for (k = 0; ROSLER_SMOOTH && s->smooth && k < 12; ++k) {
            s->stride = s->stride * 2 + rosler_ask(r, 0);
        }
    }
    rosler_reader_restart(r);
    return coded;
}

static inline int rosler_coded_small(int x)
{
    return x > 3 ? 3 : x < -3 ? -3 : x;
}

static inline int rosler_coded_magnitude(int x)
{
    return x < 0 ? -x : x;
}

static int rosler_coded_size(rosler_reader *r, int base, int levels)
{
    int digits = 0, k, x = 1, size = 1;
    while (size <= 6 && size < levels && rosler_ask(r, base + size)) {
        ++size;
    }
    if (ROSLER_CONTEXTS == 43 || size <= 6 || size == levels) {
        return size;
    }
    while (2 << digits <= levels - 6 && rosler_ask(r, 43 + digits)) {
        ++digits;
    }
    for (k = 0; k < digits; ++k) {
        x = x * 2 + rosler_ask(r, k ? 72 : 57 + digits);
    }
    return x + 6;
}

static inline int rosler_coded_full(const rosler_coded *s, int sum)
{
    return rosler_ask(s->reader, 2 + (sum < 32 ? rosler_coded_level[sum] : 10));
}

/* A value that is not zero. */
static int rosler_coded_value(const rosler_coded *s, int sum, int trend)
{
    const int towards = rosler_coded_magnitude(trend);
    const int level = towards < 6 ? rosler_coded_level[towards] : 5;
    const int negative = rosler_ask(s->reader, 13 + level) ^ (trend < 0);
    const int bank = sum < 24 ? sum >> 3 : 3;
    const int size = rosler_coded_size(s->reader, 18 + 6 * bank, s->levels);
    return negative ? -size : size;
}

/* What a value adds to the activity of its column. */
static inline int32_t rosler_coded_see(uint16_t *activity, int small)
{
    const int size = 16 * rosler_coded_magnitude(small);
    *activity = (uint16_t)(*activity - (*activity >> 5) + size);
    return size;
}

static int32_t rosler_coded_plain(rosler_coded *s, int8_t *row)
{
    int32_t total = 0;
    int c;
    for (c = 0; c < s->columns; ++c) {
        const int sum = (s->running ? s->so_far : s->activity[c]) >> 3;
        const int value = rosler_coded_full(s, sum) ? rosler_coded_value(s, sum, 0) : 0;
        const int32_t size = rosler_coded_see(s->activity + c, rosler_coded_small(value));
        row[c] = (int8_t)value;
        s->so_far += size - (s->so_far >> 5);
        total += size;
    }
    return total;
}

/* A row whose values see x, y, z before them, and b, the stride before them, between a and c. */
static int32_t rosler_coded_smooth(rosler_coded *s, int8_t *row)
{
    const int first = s->stride ? s->stride - 1 : s->columns;
    int x = 0, y = 0, z = 0, a = 0, b = 0, c = 0, k;
    int32_t total = 0;
    for (k = 0; k < s->columns; ++k) {
        int value = 0, sum = s->activity[k] >> 6;
        a = b;
        b = c;
        c = k < first ? 0 : rosler_coded_small(row[k - first]);
        if (x | y | z | a | b | c) {
            sum += 4 * rosler_coded_magnitude(x) + rosler_coded_magnitude(y);
            sum += rosler_coded_magnitude(z) + rosler_coded_magnitude(a);
            sum += 2 * (rosler_coded_magnitude(b) + rosler_coded_magnitude(c));
        }
        if (rosler_coded_full(s, sum)) {
            value = rosler_coded_value(s, sum, 4 * x + y + 2 * (b + c));
        }
        row[k] = (int8_t)value;
        z = y;
        y = x;
        x = rosler_coded_small(value);
        total += rosler_coded_see(s->activity + k, x);
    }
    return total;
}

/* The next row; gives 16 times the sum of its sizes, each at most 3: up to 4095 the activity that
   a column begins with which reads what this row makes. */
static int32_t rosler_coded_row(rosler_coded *s, int8_t *row)
{
    int c;
    s->live = rosler_ask(s->reader, s->live);
    if (s->live) {
        const int smooth = ROSLER_SMOOTH && (!ROSLER_PLAIN || s->smooth);
        return smooth ? rosler_coded_smooth(s, row) : rosler_coded_plain(s, row);
    }
    for (c = 0; c < s->columns; ++c) {
        row[c] = 0;
        s->activity[c] = (uint16_t)(s->activity[c] - (s->activity[c] >> 5));
    }
    return 0;
}
