/* requires: dense_f32
   y = x w^T, rows of w (n, k) as they are. */
static void rosler_matmul_transposed_f32(const float *x, int m, int k, int n, const float *w, float *y)
{
    static const rosler_finish_f32 plain = {0, 1.0f};
    for (; m > 0; --m, x += k, y += n) {
        rosler_dense_f32(x, k, n, w, &plain, y);
    }
}
