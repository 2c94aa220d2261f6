/* Elementwise and row by row. */

/* e^x, relative error below 2e-7; the polynomial of Cephes. Below -87.3 it stays at e^-87.3, above 88 at e^88. */
INLINE vec exp_lanes(vec x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    x = choose(x < splat(-87.3f), splat(-87.3f), x); /* a NaN stays one */
    x = choose(x > splat(88.0f), splat(88.0f), x);
    vec shifted = fma_lanes(x, splat(1.44269504f), splat(magic));
    vec n = shifted - splat(magic);
    vec r = fma_lanes(n, splat(2.12194440e-4f), fma_lanes(n, splat(-0.693359375f), x)); /* x - n ln 2 */
    vec p = splat(1.9875691500e-4f);
    p = fma_lanes(p, r, splat(1.3981999507e-3f));
    p = fma_lanes(p, r, splat(8.3334519073e-3f));
    p = fma_lanes(p, r, splat(4.1665795894e-2f));
    p = fma_lanes(p, r, splat(1.6666665459e-1f));
    p = fma_lanes(p, r, splat(5.0000001201e-1f));
    p = fma_lanes(p, r * r, r) + splat(1.0f);
    ivec exponent = ((ivec)shifted - (ivec)splat(magic) + 127) << 23;
    return p * (vec)exponent;
}

/* y = x / sqrt(mean(x^2) + eps) * weight; returns what x was multiplied by. */
INLINE float norm_row(const float *x, const float *weight, float *y, int64_t H, float eps) {
    vec squares = splat(0);
    int64_t h = 0;
    for (; h + LANES <= H; h += LANES) squares = fma_lanes(load(x + h), load(x + h), squares);
    if (h < H) squares = fma_lanes(load_part(x + h, H - h), load_part(x + h, H - h), squares);
    float scale = 1.0f / sqrtf(sum_lanes(squares) / (float)H + eps);
    for (h = 0; h < H; h++) y[h] = x[h] * scale * weight[h];
    return scale;
}

/* Shapes: x, y [T, H], weight [H], inverse [T] = 1 / sqrt(mean(x^2) + eps). */
void paceline_rms_norm(const float *x, const float *weight, float *y, float *inverse, int64_t T, int64_t H, float eps,
                       int threads) {
#pragma omp parallel for num_threads(threads) if (T * H > 32768)
    for (int64_t t = 0; t < T; t++) inverse[t] = norm_row(x + t * H, weight, y + t * H, H, eps);
}

/* Shapes: gate_up [T, 2 I], gate then up; y [T, I] = gate / (1 + e^-gate) * up. */
void paceline_swiglu(const float *gate_up, float *y, int64_t T, int64_t I, int threads) {
#pragma omp parallel for num_threads(threads) if (T * I > 16384)
    for (int64_t t = 0; t < T; t++) {
        const float *gate = gate_up + t * 2 * I, *up = gate + I;
        float *out = y + t * I;
        int64_t i = 0;
        for (; i + LANES <= I; i += LANES) {
            vec g = load(gate + i);
            store(out + i, g / (splat(1) + exp_lanes(-g)) * load(up + i));
        }
        if (i < I) {
            vec g = load_part(gate + i, I - i);
            vec last = g / (splat(1) + exp_lanes(-g)) * load_part(up + i, I - i);
            memcpy(out + i, &last, (I - i) * sizeof(float));
        }
    }
}

/* N heads of width D by the angles of one row: cosines, then sines. */
INLINE void rope_row(const float *restrict x, const float *cos_sin, float *restrict y, int64_t N, int64_t D) {
    int64_t half = D / 2;
    const float *cosine = cos_sin, *sine = cosine + half;
    for (int64_t n = 0; n < N; n++) {
        const float *first = x + n * D, *second = first + half;
        float *out = y + n * D;
        for (int64_t i = 0; i < half; i++) {
            out[i] = first[i] * cosine[i] - second[i] * sine[i];
            out[i + half] = second[i] * cosine[i] + first[i] * sine[i];
        }
    }
}

/* Shapes: x [T, N, D], its rows x_stride apart; cos_sin [T, D]; y [T, N, D]. */
void paceline_rope(const float *x, int64_t x_stride, const float *cos_sin, float *y, int64_t T, int64_t N, int64_t D,
                   int threads) {
#pragma omp parallel for num_threads(threads) if (T * N * D > 32768)
    for (int64_t t = 0; t < T; t++) rope_row(x + t * x_stride, cos_sin + t * D, y + t * N * D, N, D);
}
