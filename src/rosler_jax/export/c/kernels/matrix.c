/* requires: dsp, coded
   A matrix that a stream holds alone: the reader of its rows. In memory there are two bytes for each
   column, which the reader needs, and then a row. */
static int8_t *rosler_matrix(rosler_coded *s, rosler_reader *reader, const uint8_t *stream, int bytes,
                             int columns, int levels, unsigned char *memory)
{
    memset(memory, 0, 2 * (size_t)columns);
    s->reader = reader;
    s->activity = (uint16_t *)memory;
    s->columns = columns;
    s->levels = levels;
    rosler_reader_open(reader, stream, (uint32_t)bytes);
    rosler_coded_start(s);
    return (int8_t *)(memory + 2 * columns);
}
