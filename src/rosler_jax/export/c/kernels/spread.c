/* requires: dsp
   A tile: the patches of four pixels as 16 bits, side by side, so that a weight is widened once for
   all of them. Four numbers of each of the pixels take eight words: numbers 0 and 2 of each pixel,
   then 1 and 3, as SXTB16 gives them. A slot is a number of all four. */
typedef struct {
    int16_t pixel[4];
} rosler_slot;

