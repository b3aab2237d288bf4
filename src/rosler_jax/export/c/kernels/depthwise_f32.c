/* requires: apply_f32
   A convolution of every channel by itself: the kernel's channels lie side by side as the image's do.
   Pixels beyond the image are left out. */
static void rosler_depthwise_f32(const float *x, int height, int width, int channels, int out_rows,
                                 int out_cols, int rows, int cols, int stride_y, int stride_x,
                                 int up, int left, int step_y, int step_x, const float *w,
                                 const rosler_finish_f32 *f, float *y)
{
    const int blocked = channels - channels % 4;
    int i, j, k, l, c;
    for (i = 0; i < out_rows; ++i) {
        const int top = i * stride_y - up;
        const int k0 = top < 0 ? (step_y - 1 - top) / step_y : 0;
        const int below = (height - top + step_y - 1) / step_y;
        const int k1 = below < rows ? below : rows;
        for (j = 0; j < out_cols; ++j, y += channels) {
            const int corner = j * stride_x - left;
            const int l0 = corner < 0 ? (step_x - 1 - corner) / step_x : 0;
            const int beside = (width - corner + step_x - 1) / step_x;
            const int l1 = beside < cols ? beside : cols;
            const float *first = x + ((top + k0 * step_y) * width + corner + l0 * step_x) * channels;
            const float *weight = w + (k0 * cols + l0) * channels;
            for (c = 0; c < blocked; c += 4) {
                const float *row = first + c, *taps = weight + c;
                float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
                for (k = k0; k < k1; ++k) {
                    const float *p = row, *q = taps;
                    for (l = l0; l < l1; ++l, p += step_x * channels, q += channels) {
                        s0 += p[0] * q[0];
                        s1 += p[1] * q[1];
                        s2 += p[2] * q[2];
                        s3 += p[3] * q[3];
                    }
                    row += step_y * width * channels;
                    taps += cols * channels;
                }
                y[c] = rosler_apply_f32(f, s0, c);
                y[c + 1] = rosler_apply_f32(f, s1, c + 1);
                y[c + 2] = rosler_apply_f32(f, s2, c + 2);
                y[c + 3] = rosler_apply_f32(f, s3, c + 3);
            }
            for (c = blocked; c < channels; ++c) {
                const float *row = first + c, *taps = weight + c;
                float s = 0.0f;
                for (k = k0; k < k1; ++k, row += step_y * width * channels, taps += cols * channels) {
                    for (l = l0; l < l1; ++l) {
                        s += row[(l - l0) * step_x * channels] * taps[(l - l0) * channels];
                    }
                }
                y[c] = rosler_apply_f32(f, s, c);
            }
        }
    }
}
