/* requires: clip
   finish_i32 from a 64-bit accumulator; the product stays below 2^62, as rosler-jax proved. */
typedef struct {
    const int64_t *bias;
    const int32_t *multiplier;
    int each;
    int shift;
    int limits;
    int zero;
} rosler_finish_i64;
