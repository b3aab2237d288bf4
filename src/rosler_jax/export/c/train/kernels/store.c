/* requires: crc32
   Two slots, written in turn: first the weights, then the header with the sequence number and the
   checksum. Until the last byte is there the slot is void and the other one holds. The header's
   words: magic, model, size, sequence, 0, checksum of these and the weights. */

static void rosler_header_of(uint32_t sequence, const void *weights, uint32_t header[6])
{
    header[0] = 0x524F534Cu;
    header[1] = ROSLER_TRAIN_MODEL;
    header[2] = ROSLER_TRAIN_WEIGHT_BYTES;
    header[3] = sequence;
    header[4] = 0;
    header[5] = rosler_crc32(0, header, 20);
    if (weights) {
        header[5] = rosler_crc32(header[5], weights, ROSLER_TRAIN_WEIGHT_BYTES);
    }
}

/* Whether a slot holds weights of this model, whole; and their sequence number. */
static int rosler_slot_holds(const rosler_storage *storage, int slot, uint32_t *sequence)
{
    const uint32_t start = (uint32_t)slot * ROSLER_SLOT_BYTES;
    uint32_t found[6], header[6], crc, done, piece;
    unsigned char buffer[64];
    if (storage->read(storage->context, start, found, sizeof found) != 0) {
        return 0;
    }
    rosler_header_of(found[3], 0, header);
    if (memcmp(found, header, 20) != 0) {
        return 0;
    }
    crc = header[5];
    for (done = 0; done < ROSLER_TRAIN_WEIGHT_BYTES; done += piece) {
        piece = ROSLER_TRAIN_WEIGHT_BYTES - done;
        piece = piece < sizeof buffer ? piece : (uint32_t)sizeof buffer;
        if (storage->read(storage->context, start + (uint32_t)sizeof found + done, buffer, piece)) {
            return 0;
        }
        crc = rosler_crc32(crc, buffer, piece);
    }
    *sequence = found[3];
    return crc == found[5];
}

/* The slot with the newest weights, or -1. Sequence numbers may wrap around. */
static int rosler_newest_slot(const rosler_storage *storage, uint32_t *sequence)
{
    uint32_t first = 0, second = 0;
    const int has_first = rosler_slot_holds(storage, 0, &first);
    const int has_second = rosler_slot_holds(storage, 1, &second);
    const int slot = has_first && has_second ? second - first < 0x80000000u : has_second ? 1 : 0;
    *sequence = slot ? second : first;
    return has_first || has_second ? slot : -1;
}

int rosler_train_save(const rosler_state *state, const rosler_storage *storage)
{
    uint32_t sequence, written = 0, header[6];
    const int newest = rosler_newest_slot(storage, &sequence);
    const int slot = newest == 0 ? 1 : 0;
    const uint32_t start = (uint32_t)slot * ROSLER_SLOT_BYTES;
    sequence = newest < 0 ? 1u : sequence + 1u;
    rosler_header_of(sequence, state->weights, header);
    if (storage->write(storage->context, start + (uint32_t)sizeof header, state->weights,
                       ROSLER_TRAIN_WEIGHT_BYTES) != 0 ||
        storage->write(storage->context, start, header, sizeof header) != 0) {
        return -1;
    }
    /* What was written is read again: storage may be worn out. */
    return rosler_slot_holds(storage, slot, &written) && written == sequence ? slot : -1;
}

int rosler_train_load(rosler_state *state, const rosler_storage *storage, uint32_t *sequence)
{
    uint32_t header[6], found[6], number = 0;
    int slot = rosler_newest_slot(storage, &number);
    int tries;
    rosler_train_begin(state);
    for (tries = 0; slot >= 0 && tries < 2; ++tries, slot = 1 - slot) {
        const uint32_t start = (uint32_t)slot * ROSLER_SLOT_BYTES;
        if (rosler_slot_holds(storage, slot, &number) &&
            storage->read(storage->context, start, found, sizeof found) == 0 &&
            storage->read(storage->context, start + (uint32_t)sizeof found, state->weights,
                          ROSLER_TRAIN_WEIGHT_BYTES) == 0) {
            rosler_header_of(number, state->weights, header);
            if (memcmp(found, header, sizeof header) == 0) {
                if (sequence) {
                    *sequence = number;
                }
                return slot;
            }
        }
        rosler_train_begin(state);
    }
    return -1;
}
