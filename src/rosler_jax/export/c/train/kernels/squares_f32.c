/* Mean squared error of one example, and its gradient times `share`. */
static float rosler_squares(const float *y, int count, const float *target, float share, float *d)
{
    const float mean = 1.0f / (float)count;
    float sum = 0.0f;
    int i;
    for (i = 0; i < count; ++i) {
        const float error = y[i] - target[i];
        sum += error * error;
        d[i] = 2.0f * mean * share * error;
    }
    return sum * mean;
}
