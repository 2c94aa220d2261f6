/* y = x W^T + b with int8 weights, row against row: where there are no instructions for panels of bytes. */

static float quantize_row_int16_t(const element *x, int16_t *q, int64_t K, float levels) {
    float inverse, step = activation_step(x, K, levels, &inverse);
    for (int64_t k = 0; k < K; k++) /* infinity times 0 would be NaN, and no integer */
        q[k] = inverse == 0 ? 0 : (int16_t)(int32_t)__builtin_rintf(as_float(x + k) * inverse);
    return step;
}

typedef int16_t svec __attribute__((vector_size(4 * LANES)));
typedef int16_t svec_unaligned __attribute__((vector_size(4 * LANES), aligned(2)));
typedef int8_t bvec_unaligned __attribute__((vector_size(2 * LANES), aligned(1)));

#define WIDE (2 * LANES) /* int16 of a vector */

INLINE svec widen_bytes(const int8_t *p) {
    bvec_unaligned bytes = *(const bvec_unaligned *)p;
#if LANES == 16
    return (svec)_mm512_cvtepi8_epi16((__m256i)bytes);
#elif defined(__AVX2__)
    return (svec)_mm256_cvtepi8_epi16((__m128i)bytes); /* GCC converts halves */
#else
    return __builtin_convertvector(bytes, svec);
#endif
}

/* sums[i] += x[2i] w[2i] + x[2i+1] w[2i+1] */
INLINE ivec add_integer_products(ivec sums, svec x, svec w) {
#if LANES == 16
    return sums + (ivec)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif defined(__AVX2__)
    return sums + (ivec)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#else
    for (int i = 0; i < LANES; i++) sums[i] += x[2 * i] * w[2 * i] + x[2 * i + 1] * w[2 * i + 1];
    return sums;
#endif
}

INLINE void int8_tile(int ROWS, int COLUMNS, const int16_t *x, const float *step, const int8_t *w, const float *scale,
                      const element *bias, element *y, int64_t K, int64_t N) {
    ivec sums[3][8];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = (ivec){0};
    int64_t k = 0;
    for (; k + WIDE <= K; k += WIDE) {
        svec wk[8];
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            wk[c] = widen_bytes(w + c * K + k);
            if (ROWS > 1) IN_REGISTER(wk[c]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            svec xk = *(const svec_unaligned *)(x + r * K + k);
            IN_REGISTER(xk);
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++) {
                sums[r][c] = add_integer_products(sums[r][c], xk, wk[c]);
                IN_REGISTER(sums[r][c]); /* GCC would rather keep the products, and the sums in memory */
            }
        }
    }
    if (k < K)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++) {
                svec last_x = {0};
                int8_t last_w[WIDE] = {0};
                memcpy(&last_x, x + r * K + k, (K - k) * sizeof(int16_t));
                memcpy(last_w, w + c * K + k, K - k);
                sums[r][c] = add_integer_products(sums[r][c], last_x, widen_bytes(last_w));
            }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c += 4) {
            int few = COLUMNS - c < 4 ? COLUMNS - c : 4;
            quad out = {0};
            integer_quad sum = {0};
            if (few == 4)
                sum = sum_four_integers(sums[r][c], sums[r][c + 1], sums[r][c + 2], sums[r][c + 3]);
            else
#pragma GCC unroll 8
                for (int i = 0; i < few; i++) sum[i] = sum_integers(sums[r][c + i]);
#pragma GCC unroll 8
            for (int i = 0; i < few; i++)
                out[i] = (float)sum[i] * (step[r] * scale[c + i]) + (bias ? as_float(bias + c + i) : 0.0f);
            store_few(y + r * N + c, out, few);
        }
}

#define INT8_ROWS(ROWS, COLUMNS)                                                                                      \
    static void int8_rows_##ROWS(const int16_t *x, const float *step, const int8_t *w, const float *scale,            \
                                 const element *bias, element *y, int64_t K, int64_t N, int64_t columns,              \
                                 Ahead *ahead) {                                                                      \
        int64_t c = 0;                                                                                                \
        for (; c + COLUMNS <= columns; c += COLUMNS) {                                                                \
            fetch(ahead);                                                                                             \
            int8_tile(ROWS, COLUMNS, x, step, w + c * K, scale + c, bias ? bias + c : 0, y + c, K, N);                \
        }                                                                                                             \
        for (; c < columns; c++) int8_tile(ROWS, 1, x, step, w + c * K, scale + c, bias ? bias + c : 0, y + c, K, N); \
    }
INT8_ROWS(1, 8)
INT8_ROWS(2, 4)
INT8_ROWS(3, 3)

int64_t paceline_int8_panel_places(int64_t K, int64_t N) {
    (void)K, (void)N;
    return 0;
}

void paceline_int8_pack(const int8_t *w, int32_t *panels, int64_t K, int64_t N, int threads) {
    (void)w, (void)panels, (void)K, (void)N, (void)threads;
}

int64_t paceline_int8_room(int64_t M, int64_t K) { return M * (K + 2); }

void paceline_int8_linear(const element *x, int16_t *room, float levels, const int8_t *w, const int32_t *panels,
                          const float *scale, const element *bias, element *y, int64_t M, int64_t K, int64_t N,
                          int threads) {
    (void)panels;
    float *step = (float *)room;
    int16_t *q = room + 2 * M;
#pragma omp parallel for num_threads(threads) if (M * K > 32768)
    for (int64_t m = 0; m < M; m++) step[m] = quantize_row_int16_t(x + m * K, q + m * K, K, levels);
    int64_t block = 32768 / K / 24 * 24;
    if (block < 24) block = 24;
    int64_t blocks = (N + block - 1) / block, taken = 0;
#pragma omp parallel num_threads(threads)
    for (int64_t b = take_block(&taken), next; b < blocks; b = next) {
        next = take_block(&taken);
        int64_t n = b * block, columns = n + block < N ? block : N - n, m = 0;
        Ahead ahead = ahead_of(w, K * sizeof(*w), next, block, N, M / 3 * ((columns + 2) / 3));
        const int8_t *wn = w + n * K;
        const float *sn = scale + n;
        const element *bn = bias ? bias + n : 0;
        for (; m + 3 <= M; m += 3) int8_rows_3(q + m * K, step + m, wn, sn, bn, y + m * N + n, K, N, columns, &ahead);
        if (M - m == 2) int8_rows_2(q + m * K, step + m, wn, sn, bn, y + m * N + n, K, N, columns, &ahead);
        if (M - m == 1) int8_rows_1(q + m * K, step + m, wn, sn, bn, y + m * N + n, K, N, columns, &ahead);
    }
}
