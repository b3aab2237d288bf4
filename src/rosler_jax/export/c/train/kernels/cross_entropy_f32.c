/* Cross-entropy of one example, and its gradient times `share`. */
static float rosler_cross_entropy(const float *y, int count, int label, float share, float *d)
{
    float most = y[0], sum = 0.0f, target;
    int i;
    for (i = 1; i < count; ++i) {
        most = y[i] > most ? y[i] : most;
    }
    target = y[label] - most;
    for (i = 0; i < count; ++i) {
        d[i] = expf(y[i] - most);
        sum += d[i];
    }
    for (i = 0; i < count; ++i) {
        d[i] *= share / sum;
    }
    d[label] -= share;
    return logf(sum) - target;
}
