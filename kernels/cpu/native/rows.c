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

/* y = x / sqrt(mean(x^2) + eps) * weight, rounded before the weight too, as Hugging Face does; returns what x was
 * multiplied by. */
INLINE float norm_row(const element *x, const element *weight, element *y, int64_t H, float eps) {
    vec squares = splat(0);
    int64_t h = 0;
    for (; h + LANES <= H; h += LANES) squares = fma_lanes(load(x + h), load(x + h), squares);
    if (h < H) squares = fma_lanes(load_part(x + h, H - h), load_part(x + h, H - h), squares);
    float scale = 1.0f / sqrtf(sum_lanes(squares) / (float)H + eps);
    for (h = 0; h + LANES <= H; h += LANES) store(y + h, rounded(load(x + h) * splat(scale)) * load(weight + h));
    if (h < H) store_part(y + h, rounded(load_part(x + h, H - h) * splat(scale)) * load_part(weight + h, H - h), H - h);
    return scale;
}

/* Shapes: x, y [T, H], weight [H], inverse [T] = 1 / sqrt(mean(x^2) + eps). */
void paceline_rms_norm(const element *x, const element *weight, element *y, float *inverse, int64_t T, int64_t H,
                       float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (T * H > 32768)
    for (int64_t t = 0; t < T; t++) inverse[t] = norm_row(x + t * H, weight, y + t * H, H, eps);
}

INLINE vec gated(vec gate, vec up) { return gate / (splat(1) + exp_lanes(-gate)) * up; }

/* Shapes: gate_up [T, 2 I], gate then up; y [T, I] = gate / (1 + e^-gate) * up. */
void paceline_swiglu(const element *gate_up, element *y, int64_t T, int64_t I, int threads) {
#pragma omp parallel for num_threads(threads) if (T * I > 16384)
    for (int64_t t = 0; t < T; t++) {
        const element *gate = gate_up + t * 2 * I, *up = gate + I;
        element *out = y + t * I;
        int64_t i = 0;
        for (; i + LANES <= I; i += LANES) store(out + i, gated(load(gate + i), load(up + i)));
        if (i < I) store_part(out + i, gated(load_part(gate + i, I - i), load_part(up + i, I - i)), I - i);
    }
}

/* N heads of width D by the angles of one row: cosines, then sines. Not in place. */
INLINE void rope_row(const element *restrict x, const float *cos_sin, element *restrict y, int64_t N, int64_t D) {
    int64_t half = D / 2;
    const float *cosine = cos_sin, *sine = cosine + half;
    for (int64_t n = 0; n < N; n++) {
        const element *first = x + n * D, *second = first + half;
        element *out = y + n * D;
        int64_t i = 0;
        for (; i + LANES <= half; i += LANES) {
            vec a = load(first + i), b = load(second + i), c = load_floats(cosine + i), s = load_floats(sine + i);
            store(out + i, a * c - b * s);
            store(out + half + i, b * c + a * s);
        }
        if (i < half) {
            int64_t left = half - i;
            vec a = load_part(first + i, left), b = load_part(second + i, left);
            vec c = load_floats_part(cosine + i, left), s = load_floats_part(sine + i, left);
            store_part(out + i, a * c - b * s, left);
            store_part(out + half + i, b * c + a * s, left);
        }
    }
}

/* Shapes: x [T, N, D], its rows x_stride apart; cos_sin [T, D]; y [T, N, D]. */
void paceline_rope(const element *x, int64_t x_stride, const float *cos_sin, element *y, int64_t T, int64_t N,
                   int64_t D, int threads) {
#pragma omp parallel for num_threads(threads) if (T * N * D > 32768)
    for (int64_t t = 0; t < T; t++) rope_row(x + t * x_stride, cos_sin + t * D, y + t * N * D, N, D);
}
