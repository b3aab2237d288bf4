/* U = (A^T A + lambda I)^-1 A^T, lambda = ridge |A|^2 / s: the core of the parallel stage. A (l x s)
   lies row by row, U column by column. Cholesky, then one step of refinement with the residual of A
   itself, since A^T A has lost half the digits. Needs s (s + 1) + l numbers of scratch. */
static void rosler_core_solve(const float *factor, int s, float *b)
{
    int i, k;
    for (i = 0; i < s; ++i) {
        for (k = 0; k < i; ++k) {
            b[i] -= factor[i * s + k] * b[k];
        }
        b[i] /= factor[i * s + i];
    }
    for (i = s - 1; i >= 0; --i) {
        for (k = i + 1; k < s; ++k) {
            b[i] -= factor[k * s + i] * b[k];
        }
        b[i] /= factor[i * s + i];
    }
}

static void rosler_core_f32(const float *a, int l, int s, float ridge, float *scratch, float *u)
{
    float *factor = scratch, *b = scratch + s * s, *residual = b + s;
    float lambda = 0.0f;
    int i, j, k;
    for (i = 0; i < l * s; ++i) {
        lambda += a[i] * a[i];
    }
    lambda = ridge * lambda / (float)s + FLT_MIN;
    for (i = 0; i < s; ++i) {
        for (j = 0; j <= i; ++j) {
            float sum = i == j ? lambda : 0.0f;
            for (k = 0; k < l; ++k) {
                sum += a[k * s + i] * a[k * s + j];
            }
            for (k = 0; k < j; ++k) {
                sum -= factor[i * s + k] * factor[j * s + k];
            }
            if (i == j) {
                /* Rounding may leave nothing of a direction that A has lost. */
                factor[i * s + i] = sqrtf(sum > 0.5f * lambda ? sum : 0.5f * lambda);
            } else {
                factor[i * s + j] = sum / factor[j * s + j];
            }
        }
    }
    for (k = 0; k < l; ++k, u += s) {
        for (i = 0; i < s; ++i) {
            u[i] = a[k * s + i];
        }
        rosler_core_solve(factor, s, u);
        for (j = 0; j < l; ++j) {
            residual[j] = j == k ? 1.0f : 0.0f;
            for (i = 0; i < s; ++i) {
                residual[j] -= a[j * s + i] * u[i];
            }
        }
        for (i = 0; i < s; ++i) {
            b[i] = -lambda * u[i];
            for (j = 0; j < l; ++j) {
                b[i] += a[j * s + i] * residual[j];
            }
        }
        rosler_core_solve(factor, s, b);
        for (i = 0; i < s; ++i) {
            u[i] += b[i];
        }
    }
}
