/* y = x W^T + b with int8 weights. */

/* Rows of x become 16-bit integers with a step each; products are then summed in 32-bit integers, exactly, so no order
 * of summation shows in the result. The caller picks `levels` so that K products cannot overflow. */

typedef int16_t svec __attribute__((vector_size(32)));
typedef int16_t svec_unaligned __attribute__((vector_size(32), aligned(2)));
typedef int8_t bvec_unaligned __attribute__((vector_size(16), aligned(1)));

#define WIDE 16 /* int16 of a vector */

INLINE svec widen(const int8_t *p) {
    bvec_unaligned bytes = *(const bvec_unaligned *)p;
#if defined(__AVX2__)
    return (svec)_mm256_cvtepi8_epi16((__m128i)bytes); /* GCC converts halves */
#else
    return __builtin_convertvector(bytes, svec);
#endif
}

/* sums[i] += x[2i] w[2i] + x[2i+1] w[2i+1] */
INLINE ivec add_products(ivec sums, svec x, svec w) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return (ivec)_mm256_dpwssd_epi32((__m256i)sums, (__m256i)x, (__m256i)w);
#elif defined(__AVX2__)
    return sums + (ivec)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#else
    for (int i = 0; i < LANES; i++) sums[i] += x[2 * i] * w[2 * i] + x[2 * i + 1] * w[2 * i + 1];
    return sums;
#endif
}

/* max |x| / levels, and its inverse. A row that is all but zero gets 0 and 0, one that is not finite NaN and 0. */
static float row_step(const float *x, int64_t K, float levels, float *inverse) {
    vec greatest = splat(0), not_finite = splat(0);
    for (int64_t k = 0; k < K; k += LANES) {
        vec value = K - k < LANES ? load_part(x + k, K - k) : load(x + k);
        vec size = (vec)((ivec)value & 0x7fffffff);
        greatest = choose(size > greatest, size, greatest);
        not_finite += value - value;
    }
    float most = 0;
    for (int i = 0; i < LANES; i++) most = greatest[i] > most ? greatest[i] : most;
    if (sum_lanes(not_finite) != 0 || most < 1e-30f) { /* x - x is 0, or NaN, which differs from 0 too */
        *inverse = 0;
        return sum_lanes(not_finite);
    }
    *inverse = levels / most;
    return most / levels;
}

#define QUANTIZE_ROW(TYPE)                                                                              \
    static float quantize_row_##TYPE(const float *x, TYPE *q, int64_t K, float levels) {                \
        float inverse, step = row_step(x, K, levels, &inverse);                                         \
        if (inverse == 0)                                                                               \
            memset(q, 0, K * sizeof(TYPE)); /* infinity times 0 would be NaN, and no integer */         \
        else                                                                                            \
            for (int64_t k = 0; k < K; k++) q[k] = (TYPE)(int32_t)__builtin_rintf(x[k] * inverse);      \
        return step;                                                                                    \
    }
QUANTIZE_ROW(int16_t)
QUANTIZE_ROW(int8_t)

INLINE void int8_tile(int ROWS, int COLUMNS, const int16_t *x, const float *step, const int8_t *w, const float *scale,
                      const float *bias, float *y, int64_t K, int64_t N) {
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
            wk[c] = widen(w + c * K + k);
            if (ROWS > 1) IN_REGISTER(wk[c]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            svec xk = *(const svec_unaligned *)(x + r * K + k);
            IN_REGISTER(xk);
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++) {
                sums[r][c] = add_products(sums[r][c], xk, wk[c]);
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
                sums[r][c] = add_products(sums[r][c], last_x, widen(last_w));
            }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            y[r * N + c] = (float)sum_integers(sums[r][c]) * (step[r] * scale[c]) + (bias ? bias[c] : 0.0f);
        }
}

#define INT8_ROWS(ROWS, COLUMNS)                                                                                      \
    static void int8_rows_##ROWS(const int16_t *x, const float *step, const int8_t *w, const float *scale,            \
                                 const float *bias, float *y, int64_t K, int64_t N, int64_t columns, Ahead *ahead) {   \
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

/* Shapes: x [M, K], w [N, K], scale [N], bias [N] or null, y [M, N]; room [M, K + 2] for the integers and the steps. */
void paceline_int8_linear(const float *x, int16_t *room, float levels, const int8_t *w, const float *scale,
                          const float *bias, float *y, int64_t M, int64_t K, int64_t N, int threads) {
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
        const float *sn = scale + n, *bn = bias ? bias + n : 0;
        for (; m + 3 <= M; m += 3) int8_rows_3(q + m * K, step + m, wn, sn, bn, y + m * N + n, K, N, columns, &ahead);
        if (M - m == 2) int8_rows_2(q + m * K, step + m, wn, sn, bn, y + m * N + n, K, N, columns, &ahead);
        if (M - m == 1) int8_rows_1(q + m * K, step + m, wn, sn, bn, y + m * N + n, K, N, columns, &ahead);
    }
}
