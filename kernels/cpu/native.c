/* Forward ops in float32 for CPUs, called through kernels/cpu/library.py.
 *
 * Every output element is computed by one fixed sequence of operations: sums run over 8 lanes, element i in lane
 * i mod 8, lanes joined in one tree at the end. Rows, blocks of rows and threads only decide who computes an element,
 * never how. So a row has the same bits in any batch, which is what trainer and engine rely on.
 *
 * Vectors are GCC's own extension: 32 bytes are one AVX register, or two of NEON.
 */

#if defined(__x86_64__) && !(defined(__AVX2__) && defined(__FMA__))
#error "this processor has no AVX2 and FMA"
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__FMA__)
#include <immintrin.h>
#endif

#define LANES 8
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));
typedef float vec_unaligned __attribute__((vector_size(32), aligned(4)));

INLINE vec load(const float *p) { return *(const vec_unaligned *)p; }
INLINE void store(float *p, vec x) { *(vec_unaligned *)p = x; }

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* The first n < 8 elements, zeros behind them. */
INLINE vec load_part(const float *p, int64_t n) {
    vec x = {0};
    memcpy(&x, p, n * sizeof(float));
    return x;
}

/* a b + c. Always by this name: the compiler is told not to fuse by itself, since it would here and not there. */
INLINE vec fma_lanes(vec a, vec b, vec c) {
#if defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < LANES; i++) c[i] = fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

INLINE vec splat(float x) { return (vec){x, x, x, x, x, x, x, x}; }

/* One tree: halves, quarters, two. Lanes by constant index, or an array of vectors lives in memory. */
#define SUM_LANES(NAME, TYPE, VECTOR)                                             \
    INLINE TYPE NAME(VECTOR x) {                                                  \
        typedef TYPE half __attribute__((vector_size(16)));                       \
        half low = {x[0], x[1], x[2], x[3]}, high = {x[4], x[5], x[6], x[7]};     \
        half pairs = low + high;                                                  \
        half swapped = {pairs[2], pairs[3], pairs[0], pairs[1]};                  \
        pairs += swapped;                                                         \
        return pairs[0] + pairs[1];                                               \
    }
SUM_LANES(sum_lanes, float, vec)
SUM_LANES(sum_integers, int32_t, ivec)

/* The same tree for eight vectors at once: the sum of x[i] in lane i, for a third of the instructions. */
INLINE vec sum_eight(const vec *x) {
    vec halves[4], quarters[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        halves[i] = __builtin_shuffle(x[i], x[i + 4], (ivec){0, 1, 2, 3, 8, 9, 10, 11}) +
                    __builtin_shuffle(x[i], x[i + 4], (ivec){4, 5, 6, 7, 12, 13, 14, 15});
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        quarters[i] = __builtin_shuffle(halves[2 * i], halves[2 * i + 1], (ivec){0, 1, 8, 9, 4, 5, 12, 13}) +
                      __builtin_shuffle(halves[2 * i], halves[2 * i + 1], (ivec){2, 3, 10, 11, 6, 7, 14, 15});
    return __builtin_shuffle(quarters[0], quarters[1], (ivec){0, 2, 8, 10, 4, 6, 12, 14}) +
           __builtin_shuffle(quarters[0], quarters[1], (ivec){1, 3, 9, 11, 5, 7, 13, 15});
}

/* Hold x in a register: GCC would rather load it again as the operand of every use, and loads are what is scarce. */
#if defined(__x86_64__)
#define IN_REGISTER(x) __asm__("" : "+x"(x))
#else
#define IN_REGISTER(x) (void)(x)
#endif

/* ---- y = x W^T + b ------------------------------------------------------------------------------------------- */

/* ROWS x COLUMNS outputs. Both operands run along K, so weights need no packing. */
INLINE void linear_tile(int ROWS, int COLUMNS, const float *x, const float *w, const float *bias, float *y, int64_t K,
                        int64_t N) {
    vec sums[4][8];
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = splat(0);
    int64_t k = 0;
    for (; k + LANES <= K; k += LANES) {
        vec wk[8];
        for (int c = 0; c < COLUMNS; c++) {
            wk[c] = load(w + c * K + k);
            if (ROWS > 1) IN_REGISTER(wk[c]); /* one row uses each once, and has 8 of them */
        }
        for (int r = 0; r < ROWS; r++) {
            vec xk = load(x + r * K + k);
            IN_REGISTER(xk);
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = fma_lanes(xk, wk[c], sums[r][c]);
        }
    }
    if (k < K)
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < COLUMNS; c++)
                sums[r][c] = fma_lanes(load_part(x + r * K + k, K - k), load_part(w + c * K + k, K - k), sums[r][c]);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++) y[r * N + c] = sum_lanes(sums[r][c]) + (bias ? bias[c] : 0.0f);
}

/* ROWS rows against all columns of a block, COLUMNS at a time: as many as the 16 registers hold. */
#define LINEAR_ROWS(ROWS, COLUMNS)                                                                                 \
    static void linear_rows_##ROWS(const float *x, const float *w, const float *bias, float *y, int64_t K, int64_t N, \
                                   int64_t columns) {                                                              \
        int64_t c = 0;                                                                                             \
        for (; c + COLUMNS <= columns; c += COLUMNS)                                                               \
            linear_tile(ROWS, COLUMNS, x, w + c * K, bias ? bias + c : 0, y + c, K, N);                            \
        for (; c < columns; c++) linear_tile(ROWS, 1, x, w + c * K, bias ? bias + c : 0, y + c, K, N);             \
    }
LINEAR_ROWS(1, 8)
LINEAR_ROWS(2, 4)
LINEAR_ROWS(3, 3)
LINEAR_ROWS(4, 3)

/* Shapes: x [M, K], w [N, K], bias [N] or null, y [M, N]. */
void paceline_linear(const float *x, const float *w, const float *bias, float *y, int64_t M, int64_t K, int64_t N,
                     int threads) {
    /* the weights of a block stay in the second-level cache while all rows pass by */
    int64_t block = 131072 / (K * (int64_t)sizeof(float)) / 12 * 12;
    if (block < 12) block = 12;
    int64_t blocks = (N + block - 1) / block;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t n = b * block, columns = n + block < N ? block : N - n, m = 0;
        const float *wn = w + n * K, *bn = bias ? bias + n : 0;
        for (; m + 4 <= M; m += 4) linear_rows_4(x + m * K, wn, bn, y + m * N + n, K, N, columns);
        const float *rest = x + m * K;
        if (M - m == 1) linear_rows_1(rest, wn, bn, y + m * N + n, K, N, columns);
        if (M - m == 2) linear_rows_2(rest, wn, bn, y + m * N + n, K, N, columns);
        if (M - m == 3) linear_rows_3(rest, wn, bn, y + m * N + n, K, N, columns);
    }
}

/* ---- elementwise and row by row ------------------------------------------------------------------------------ */

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

/* Shapes: x, y [T, H], weight [H], inverse [T] = 1 / sqrt(mean(x^2) + eps). */
void paceline_rms_norm(const float *x, const float *weight, float *y, float *inverse, int64_t T, int64_t H, float eps,
                       int threads) {
#pragma omp parallel for num_threads(threads) if (T * H > 32768)
    for (int64_t t = 0; t < T; t++) {
        const float *row = x + t * H;
        vec squares = splat(0);
        int64_t h = 0;
        for (; h + LANES <= H; h += LANES) squares = fma_lanes(load(row + h), load(row + h), squares);
        if (h < H) squares = fma_lanes(load_part(row + h, H - h), load_part(row + h, H - h), squares);
        float scale = 1.0f / sqrtf(sum_lanes(squares) / (float)H + eps);
        for (h = 0; h < H; h++) y[t * H + h] = row[h] * scale * weight[h];
        inverse[t] = scale;
    }
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

/* Shapes: x [T, N, D], its rows x_stride apart; cos_sin [T, D], cosines then sines; y [T, N, D]. */
void paceline_rope(const float *x, int64_t x_stride, const float *cos_sin, float *y, int64_t T, int64_t N, int64_t D,
                   int threads) {
    int64_t half = D / 2;
#pragma omp parallel for num_threads(threads) if (T * N * D > 32768)
    for (int64_t t = 0; t < T; t++) {
        const float *cosine = cos_sin + t * D, *sine = cosine + half;
        for (int64_t n = 0; n < N; n++) {
            const float *first = x + t * x_stride + n * D, *second = first + half;
            float *out = y + (t * N + n) * D;
            for (int64_t i = 0; i < half; i++) {
                out[i] = first[i] * cosine[i] - second[i] * sine[i];
                out[i + half] = second[i] * cosine[i] + first[i] * sine[i];
            }
        }
    }
}

/* ---- y = x W^T + b with int8 weights -------------------------------------------------------------------------- */

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
                                 const float *bias, float *y, int64_t K, int64_t N, int64_t columns) {                \
        int64_t c = 0;                                                                                                \
        for (; c + COLUMNS <= columns; c += COLUMNS)                                                                  \
            int8_tile(ROWS, COLUMNS, x, step, w + c * K, scale + c, bias ? bias + c : 0, y + c, K, N);                \
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
    int64_t blocks = (N + block - 1) / block;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t n = b * block, columns = n + block < N ? block : N - n, m = 0;
        const int8_t *wn = w + n * K;
        const float *sn = scale + n, *bn = bias ? bias + n : 0;
        for (; m + 3 <= M; m += 3) int8_rows_3(q + m * K, step + m, wn, sn, bn, y + m * N + n, K, N, columns);
        if (M - m == 2) int8_rows_2(q + m * K, step + m, wn, sn, bn, y + m * N + n, K, N, columns);
        if (M - m == 1) int8_rows_1(q + m * K, step + m, wn, sn, bn, y + m * N + n, K, N, columns);
    }
}

/* ---- attention ------------------------------------------------------------------------------------------------ */

#define KEY_BLOCK 64
#define MAX_HEAD_DIM 256
#define MAX_GROUP 32      /* query heads of one KV head */
#define QUERIES_PER_TASK 8
#define ROWS_PER_TASK (QUERIES_PER_TASK * MAX_GROUP)

/* Where the key (or value) at a position of a sequence is: base + table[first entry + p / per_index] * index_stride
 * + head * head_stride + (p % per_index) * D. A paged cache has per_index = block_size; packed rows have 1. */
typedef struct {
    const void *keys, *values; /* float, or int8 with a scale for each D of them */
    const float *key_scales, *value_scales;
    const int64_t *table;
    int64_t per_index, index_stride, head_stride;
} Cache;

/* Shapes: k, v [T, M, D], their rows k_stride and v_stride apart; keys, values [blocks, M, B, D]; block_ids, offsets
 * [T]: where the cache has row t. */
void paceline_write_cache(const float *k, int64_t k_stride, const float *v, int64_t v_stride, float *keys,
                          float *values, const int64_t *block_ids, const int64_t *offsets, int64_t T, int64_t M,
                          int64_t B, int64_t D) {
    for (int64_t t = 0; t < T; t++)
        for (int64_t m = 0; m < M; m++) {
            int64_t at = ((block_ids[t] * M + m) * B + offsets[t]) * D;
            memcpy(keys + at, k + t * k_stride + m * D, D * sizeof(float));
            memcpy(values + at, v + t * v_stride + m * D, D * sizeof(float));
        }
}

/* The same into a cache of int8 [blocks, M, B, D] with scales [blocks, M, B]. */
void paceline_write_cache_int8(const float *k, int64_t k_stride, const float *v, int64_t v_stride, int8_t *keys,
                               int8_t *values, float *key_scales, float *value_scales, const int64_t *block_ids,
                               const int64_t *offsets, int64_t T, int64_t M, int64_t B, int64_t D) {
    for (int64_t t = 0; t < T; t++)
        for (int64_t m = 0; m < M; m++) {
            int64_t at = (block_ids[t] * M + m) * B + offsets[t];
            key_scales[at] = quantize_row_int8_t(k + t * k_stride + m * D, keys + at * D, D, 127);
            value_scales[at] = quantize_row_int8_t(v + t * v_stride + m * D, values + at * D, D, 127);
        }
}

/* A query's packed row, its position in its sequence, and where its keys begin in the table. */
typedef struct {
    int64_t row, position, first_entry;
} Query;

/* What a row (a head of a query) has folded so far, on the maximum seen so far; and how the next block joins it. */
typedef struct {
    float maximum, total, keep, add;
    float output[MAX_HEAD_DIM];
} State;

/* ROWS x 4 scores. With 12 sums and what is held of the rows, one register is left: for a key. */
INLINE void score_tile(int ROWS, const float *const *q, const float *const *keys, float (*scores)[KEY_BLOCK], int64_t c,
                       int64_t D) {
    vec sums[3][4];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) sums[r][k] = splat(0);
    for (int64_t d = 0; d < D; d += LANES) {
        vec query[3];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            query[r] = load(q[r] + d);
            IN_REGISTER(query[r]);
        }
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            vec key = load(keys[c + k] + d);
            IN_REGISTER(key);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) sums[r][k] = fma_lanes(query[r], key, sums[r][k]);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; r += 2) {
        int next = r + 1 < ROWS ? r + 1 : r;
        vec eight[8] = {sums[r][0],    sums[r][1],    sums[r][2],    sums[r][3],
                        sums[next][0], sums[next][1], sums[next][2], sums[next][3]};
        vec sum = sum_eight(eight);
        memcpy(scores[r] + c, &sum, 4 * sizeof(float));
        if (next > r) memcpy(scores[next] + c, (float *)&sum + 4, 4 * sizeof(float));
    }
}

/* ROWS x (8 VECS) elements of the weighted sum of values, joined to what was there. */
INLINE void value_tile(int ROWS, int VECS, float (*weights)[KEY_BLOCK], const float *const *values, int64_t count,
                       int64_t d, State *states) {
    vec sums[3][4];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) sums[r][v] = splat(0);
    for (int64_t c = 0; c < count; c++) {
        vec weight[3];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            weight[r] = splat(weights[r][c]);
            IN_REGISTER(weight[r]);
        }
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            vec value = load(values[c] + d + v * LANES);
            IN_REGISTER(value);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) sums[r][v] = fma_lanes(weight[r], value, sums[r][v]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            float *output = states[r].output + d + v * LANES;
            store(output, load(output) * splat(states[r].keep) + sums[r][v] * splat(states[r].add));
        }
}

/* Scores of the first `count` keys become weights, zeros behind them; maximum and total go into the state. */
INLINE void weigh(float *scores, int64_t count, float scale, State *state) {
    vec maximum = splat(-INFINITY), total = splat(0);
    for (int64_t c = count; c < KEY_BLOCK; c++) scores[c] = -INFINITY;
    for (int64_t c = 0; c < KEY_BLOCK; c += LANES) {
        vec scaled = load(scores + c) * splat(scale);
        store(scores + c, scaled);
        maximum = choose(scaled > maximum, scaled, maximum); /* a NaN is not greater, and stays among the scores */
    }
    float most = maximum[0];
    for (int i = 1; i < LANES; i++) most = maximum[i] > most ? maximum[i] : most;
    for (int64_t c = 0; c < KEY_BLOCK; c += LANES) {
        vec x = load(scores + c), weights = choose(x == splat(-INFINITY), splat(0), exp_lanes(x - splat(most)));
        store(scores + c, weights);
        total += weights;
    }
    float joint = most <= state->maximum ? state->maximum : most;
    state->keep = expf(state->maximum - joint);
    state->add = expf(most - joint);
    state->total = state->total * state->keep + sum_lanes(total) * state->add;
    state->maximum = joint;
}

#define BY_THREE(ROWS, TILE, ...)                                   \
    do {                                                            \
        int64_t r = 0;                                              \
        for (; r + 3 <= (ROWS); r += 3) TILE(3, __VA_ARGS__);       \
        if ((ROWS) - r == 2) TILE(2, __VA_ARGS__);                  \
        if ((ROWS) - r == 1) TILE(1, __VA_ARGS__);                  \
    } while (0)

/* One block of keys from position `start`, for all heads of `queries` queries that read it from the same place. Keys
 * outermost, so that they pass through the first-level cache once. `visible` keys of the last query, fewer before. */
static void attend_block(const float *q, const float *const *keys, const float *const *values, int64_t start,
                         const Query *queries, int64_t num_queries, State *states, int64_t head, int64_t N, int64_t G,
                         int64_t D) {
    float scores[ROWS_PER_TASK][KEY_BLOCK] __attribute__((aligned(32)));
    const float *query[ROWS_PER_TASK];
    int64_t rows = num_queries * G, visible = queries[num_queries - 1].position + 1 - start;
    float scale = 1.0f / sqrtf((float)D);
    if (visible > KEY_BLOCK) visible = KEY_BLOCK;
    for (int64_t r = 0; r < rows; r++) query[r] = q + (queries[r / G].row * N + head * G + r % G) * D;
    for (int64_t c = 0; c < visible; c += 4) {
        for (int64_t k = c; k < c + 4; k++) /* few rows wait for memory: fetch the values meanwhile */
            for (int64_t d = 0; d < D; d += 16) __builtin_prefetch(values[k] + d);
        BY_THREE(rows, score_tile, query + r, keys, scores + r, c, D);
    }
    for (int64_t r = 0; r < rows; r++) {
        int64_t count = queries[r / G].position + 1 - start;
        weigh(scores[r], count < KEY_BLOCK ? count : KEY_BLOCK, scale, states + r);
    }
    int64_t d = 0;
    for (; d + 4 * LANES <= D; d += 4 * LANES)
        BY_THREE(rows, value_tile, 4, scores + r, values, visible, d, states + r);
    for (; d < D; d += LANES) BY_THREE(rows, value_tile, 1, scores + r, values, visible, d, states + r);
}

INLINE void dequantize(const int8_t *q, float scale, float *x, int64_t D) {
    for (int64_t d = 0; d < D; d += LANES) {
#if defined(__AVX2__)
        __m256i integers = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(q + d)));
        store(x + d, (vec)_mm256_cvtepi32_ps(integers) * splat(scale));
#else
        for (int64_t i = d; i < d + LANES; i++) x[i] = (float)q[i] * scale;
#endif
    }
}

/* Where the keys and values at positions start to end are, as floats; those of int8 are made in `room`. The last ones
 * stand for the rest of a tile too. */
INLINE void locate_block(const Cache *cache, int64_t first_entry, int64_t start, int64_t end, int64_t head, int64_t D,
                         float *room, const float **keys, const float **values) {
    int64_t entry = first_entry + start / cache->per_index, offset = start % cache->per_index;
    for (int64_t p = start; p < end; p++, offset++) {
        if (offset == cache->per_index) {
            offset = 0;
            entry++;
        }
        int64_t at = cache->table[entry] * cache->index_stride + head * cache->head_stride + offset * D;
        if (cache->key_scales) {
            float *key = room + (p - start) * 2 * D, *value = key + D;
            dequantize((const int8_t *)cache->keys + at, cache->key_scales[at / D], key, D);
            dequantize((const int8_t *)cache->values + at, cache->value_scales[at / D], value, D);
            keys[p - start] = key;
            values[p - start] = value;
        } else {
            keys[p - start] = (const float *)cache->keys + at;
            values[p - start] = (const float *)cache->values + at;
        }
    }
    for (int64_t c = end - start; c % 4; c++) keys[c] = keys[end - start - 1];
}

/* Queries against one KV head. The first `shared` positions of all are in the same place. */
static void attend_task(const float *q, const Cache *cache, float *out, float *logsumexp, const Query *queries,
                        int64_t num_queries, int64_t shared, int64_t head, int64_t N, int64_t G, int64_t D) {
    State states[ROWS_PER_TASK];
    const float *keys[KEY_BLOCK], *values[KEY_BLOCK];
    float room[KEY_BLOCK * 2 * MAX_HEAD_DIM] __attribute__((aligned(32)));
    int64_t last = 0;
    for (int64_t i = 0; i < num_queries; i++) last = queries[i].position > last ? queries[i].position : last;
    for (int64_t r = 0; r < num_queries * G; r++) {
        states[r].maximum = -INFINITY;
        states[r].total = 0;
        memset(states[r].output, 0, D * sizeof(float));
    }
    for (int64_t start = 0; start <= last; start += KEY_BLOCK)
        for (int64_t i = 0, end; i < num_queries; i = end) {
            int64_t first = queries[i].first_entry;
            for (end = i + 1; end < num_queries && (start < shared || queries[end].first_entry == first);) end++;
            while (i < end && queries[i].position < start) i++; /* these see nothing of it */
            if (i == end) continue;
            int64_t visible = queries[end - 1].position + 1;
            if (visible > start + KEY_BLOCK) visible = start + KEY_BLOCK;
            locate_block(cache, first, start, visible, head, D, room, keys, values);
            attend_block(q, keys, values, start, queries + i, end - i, states + i * G, head, N, G, D);
        }
    for (int64_t r = 0; r < num_queries * G; r++) {
        int64_t at = queries[r / G].row * N + head * G + r % G;
        for (int64_t d = 0; d < D; d++) out[at * D + d] = states[r].output[d] / states[r].total;
        logsumexp[at] = states[r].maximum + logf(states[r].total);
    }
}

/* Shapes: q, out [T, N, D], logsumexp [T, N]; no scales where keys and values are float; queries [Q, 3] as in Query,
 * those of a sequence in ascending order; tasks [W, 3] = first query, queries, positions shared by all. 8 divides D. */
void paceline_attention(const float *q, const void *keys, const void *values, const float *key_scales,
                        const float *value_scales, const int64_t *table, int64_t per_index, int64_t index_stride,
                        int64_t head_stride, const int64_t *queries, const int64_t *tasks, int64_t W, float *out,
                        float *logsumexp, int64_t N, int64_t M, int64_t D, int threads) {
    Cache cache = {keys, values, key_scales, value_scales, table, per_index, index_stride, head_stride};
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t w = 0; w < W; w++)
        for (int64_t head = 0; head < M; head++) {
            const int64_t *task = tasks + 3 * w;
            attend_task(q, &cache, out, logsumexp, (const Query *)queries + task[0], task[1], task[2], head, N, N / M,
                        D);
        }
}
