/* requires: depthwise_each, taps
   The same for windows of @TAPS@ taps. */
ROSLER_APART void rosler_depthwise_i8_@TAPS@(const int8_t *const *taps, int channels,
                                             const uint32_t *w, const rosler_finish_i32 *f, int8_t *y)
{
    rosler_each_i8(taps, @TAPS@ / 2, @TAPS@ % 2, channels, w, f, y);
}
