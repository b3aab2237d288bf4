/* y = max(acc * scale + bias, low). */
typedef struct {
    const float *bias;
    float scale;
    int relu;
} rosler_finish_f32;
