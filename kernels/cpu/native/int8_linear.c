/* y = x W^T + b with int8 weights. */

/* Rows of x become 16-bit integers with a step each; products are then summed in 32-bit integers, exactly, so no order
 * of summation shows in the result. The caller picks `levels` so that K products cannot overflow. */

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
#if LANES == 16 && defined(__AVX512VNNI__)
    return (ivec)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)x, (__m512i)w);
#elif LANES == 16
    return sums + (ivec)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif defined(__AVX2__)
    return sums + (ivec)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#else
    for (int i = 0; i < LANES; i++) sums[i] += x[2 * i] * w[2 * i] + x[2 * i + 1] * w[2 * i + 1];
    return sums;
#endif
}

/* max |x| / levels, and its inverse. A row that is all but zero gets 0 and 0, one that is not finite NaN and 0. */
static float row_step(const element *x, int64_t K, float levels, float *inverse) {
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
    static float quantize_row_##TYPE(const element *x, TYPE *q, int64_t K, float levels) {              \
        float inverse, step = row_step(x, K, levels, &inverse);                                         \
        if (inverse == 0)                                                                               \
            memset(q, 0, K * sizeof(TYPE)); /* infinity times 0 would be NaN, and no integer */         \
        else                                                                                            \
            for (int64_t k = 0; k < K; k++) q[k] = (TYPE)(int32_t)__builtin_rintf(as_float(x + k) * inverse); \
        return step;                                                                                    \
    }
QUANTIZE_ROW(int16_t)
QUANTIZE_ROW(int8_t)

INLINE void int8_tile(int ROWS, int COLUMNS, const int16_t *x, const float *step, const int8_t *w, const float *scale,
                      const element *bias, element *y, int64_t K, int64_t N) {
    ivec sums[6][8];
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
#if LANES == 16
#define MOST_INT8_ROWS 6
#define FEWEST_INT8_COLUMNS 4
INT8_ROWS(1, 8)
INT8_ROWS(2, 8)
INT8_ROWS(3, 6)
INT8_ROWS(4, 4)
INT8_ROWS(5, 4)
INT8_ROWS(6, 4)
#else
#define MOST_INT8_ROWS 3
#define FEWEST_INT8_COLUMNS 3
INT8_ROWS(1, 8)
INT8_ROWS(2, 4)
INT8_ROWS(3, 3)
#endif

INLINE void int8_rows(int64_t rows, const int16_t *x, const float *step, const int8_t *w, const float *scale,
                      const element *bias, element *y, int64_t K, int64_t N, int64_t columns, Ahead *ahead) {
    switch (rows) {
        case 1: int8_rows_1(x, step, w, scale, bias, y, K, N, columns, ahead); break;
        case 2: int8_rows_2(x, step, w, scale, bias, y, K, N, columns, ahead); break;
        case 3: int8_rows_3(x, step, w, scale, bias, y, K, N, columns, ahead); break;
#if LANES == 16
        case 4: int8_rows_4(x, step, w, scale, bias, y, K, N, columns, ahead); break;
        case 5: int8_rows_5(x, step, w, scale, bias, y, K, N, columns, ahead); break;
        case 6: int8_rows_6(x, step, w, scale, bias, y, K, N, columns, ahead); break;
#endif
    }
}

/* Shapes: x [M, K], w [N, K], scale [N], bias [N] or null, y [M, N]; room [M, K + 2] for the integers and the steps. */
void paceline_int8_linear(const element *x, int16_t *room, float levels, const int8_t *w, const float *scale,
                          const element *bias, element *y, int64_t M, int64_t K, int64_t N, int threads) {
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
        int64_t n = b * block, columns = n + block < N ? block : N - n;
        int64_t tiles = (columns + FEWEST_INT8_COLUMNS - 1) / FEWEST_INT8_COLUMNS;
        Ahead ahead = ahead_of(w, K * sizeof(*w), next, block, N, M / MOST_INT8_ROWS * tiles);
        for (int64_t m = 0; m < M; m += MOST_INT8_ROWS)
            int8_rows(M - m < MOST_INT8_ROWS ? M - m : MOST_INT8_ROWS, q + m * K, step + m, w + n * K, scale + n,
                      bias ? bias + n : 0, y + m * N + n, K, N, columns, &ahead);
    }
}
