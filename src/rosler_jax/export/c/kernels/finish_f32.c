/* y = acc * scale + bias. */
typedef struct {
    const float *bias;
    float scale;
} rosler_finish_f32;
