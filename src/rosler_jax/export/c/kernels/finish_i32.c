/* requires: clip
   y = clip((((acc + bias) * multiplier + 2^(shift - 1)) >> shift) + zero) with a product of 64 bits;
   the shifted number fits 32 bits, as rosler-jax proved. */
typedef struct {
    const int32_t *bias;       /* one for each output, or none */
    const int32_t *multiplier; /* one for each output, or one */
    int each;
    int shift;
    int limits;
    int zero;
    int64_t half; /* 2^(shift - 1), with the zero in its place */
} rosler_finish_i32;
