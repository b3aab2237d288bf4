/* Quotient and rest of whole numbers, as XLA defines them where C does not. */
static inline int32_t rosler_div_i32(int32_t a, int32_t b)
{
    return b == 0 ? -1 : b == -1 ? (int32_t)(0u - (uint32_t)a) : a / b;
}

static inline int32_t rosler_rem_i32(int32_t a, int32_t b)
{
    return b == 0 ? a : b == -1 ? 0 : a % b;
}
