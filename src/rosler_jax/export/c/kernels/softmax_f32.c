/* Probabilities. */
void rosler_softmax(const rosler_output *y, float *p)
{
    float most = y[0], sum = 0.0f;
    int i;
    for (i = 1; i < ROSLER_OUTPUT_SIZE; ++i) {
        most = y[i] > most ? y[i] : most;
    }
    for (i = 0; i < ROSLER_OUTPUT_SIZE; ++i) {
        p[i] = expf(y[i] - most);
        sum += p[i];
    }
    for (i = 0; i < ROSLER_OUTPUT_SIZE; ++i) {
        p[i] /= sum;
    }
}
