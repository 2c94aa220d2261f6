/* On panels of bytes: a place is four int8 along K. The instruction multiplies unsigned bytes by signed ones, so an integer x
 * goes in as the two digits of x + 32768 = 256 high + low; what was added is taken away with the sum of the weights,
 * which is behind each panel. Sums may wrap on the way, the result fits. */

#define INT8_STEP (4 * LANES) /* columns of a tile */
INLINE int64_t int8_panel_size(int64_t K) { return (places_in(K) + 1) * LANES; }

static void pack_int8_columns(const int8_t *w, int64_t K, int64_t columns, int32_t *panels) {
    const __m512i ones = _mm512_set1_epi8(1);
    int64_t places = places_in(K);
    for (int64_t n = 0; n < columns; n += LANES, panels += int8_panel_size(K)) {
        __m512i sums = _mm512_setzero_si512();
        pack_rows((const char *)(w + n * K), K, columns - n, panels);
        for (int64_t p = 0; p < places; p++)
            sums = _mm512_dpbusd_epi32(sums, ones, _mm512_loadu_si512(panels + p * LANES));
        _mm512_storeu_si512(panels + places * LANES, sums);
    }
}

/* ROWS x (COLUMNS panels) outputs; each row is the places of its high digits, then those of its low ones. */
INLINE void int8_tile(int ROWS, int COLUMNS, const uint8_t *digits, const float *step, const int32_t *panels,
                      const float *scale, const element *bias, element *y, int64_t K, int64_t N, int64_t limit) {
    int64_t places = places_in(K), size = int8_panel_size(K);
    ivec sums[3][4][2];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) sums[r][c][0] = sums[r][c][1] = (ivec){0};
    for (int64_t p = 0; p < places; p++) {
        ivec w[4];
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            w[c] = (ivec)_mm512_loadu_si512(panels + c * size + p * LANES);
            IN_REGISTER(w[c]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
            for (int g = 0; g < 2; g++) {
                int32_t place;
                memcpy(&place, digits + ((r * 2 + g) * places + p) * 4, sizeof(place));
                __m512i x = _mm512_set1_epi32(place);
                IN_REGISTER(x);
#pragma GCC unroll 8
                for (int c = 0; c < COLUMNS; c++)
                    sums[r][c][g] = (ivec)_mm512_dpbusd_epi32((__m512i)sums[r][c][g], x, (__m512i)w[c]);
            }
    }
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; c++) {
        int64_t n = c * LANES, left = limit - n;
        uvec added = *(const uvec *)(panels + c * size + places * LANES);
        vec s = left < LANES ? load_floats_part(scale + n, left) : load_floats(scale + n);
        vec b = !bias ? splat(0) : load_up_to(bias + n, left);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            uvec sum = ((uvec)sums[r][c][0] << 8) + (uvec)sums[r][c][1] - (added << 15);
            vec product = (vec)_mm512_cvtepi32_ps((__m512i)sum) * (splat(step[r]) * s);
            store_up_to(y + r * N + n, product + b, left);
        }
    }
}

#define INT8_ROWS(ROWS)                                                                                              \
    static void int8_rows_##ROWS(const uint8_t *digits, const float *step, const int32_t *panels, const float *scale, \
                                 const element *bias, element *y, int64_t K, int64_t N, int64_t columns,             \
                                 Ahead *ahead) {                                                                     \
        int64_t n = 0, size = int8_panel_size(K) / LANES;                                                            \
        for (; n + INT8_STEP <= columns; n += INT8_STEP) {                                                           \
            fetch(ahead);                                                                                            \
            int8_tile(ROWS, 4, digits, step, panels + n * size, scale + n, bias ? bias + n : 0, y + n, K, N,         \
                      INT8_STEP);                                                                                    \
        }                                                                                                            \
        for (; n < columns; n += LANES)                                                                              \
            int8_tile(ROWS, 1, digits, step, panels + n * size, scale + n, bias ? bias + n : 0, y + n, K, N,         \
                      columns - n);                                                                                  \
    }
INT8_ROWS(1)
INT8_ROWS(2)
INT8_ROWS(3)

/* A row of integers as bytes: high digits, then low ones. */
static float quantize_digits(const element *x, uint8_t *digits, int64_t K, float levels) {
    int64_t width = places_in(K) * 4;
    float inverse, step = row_step(x, K, levels, &inverse);
    for (int64_t k = 0; k < width; k += LANES) {
        vec value = k < K ? load_up_to(x + k, K - k) : splat(0);
        ivec integers = inverse == 0 ? (ivec){0} : (ivec)_mm512_cvtps_epi32((__m512)(value * splat(inverse)));
        integers += 32768;
        __m128i low = _mm512_cvtepi32_epi8((__m512i)integers), high = _mm512_cvtepi32_epi8((__m512i)(integers >> 8));
        int64_t count = width - k < LANES ? width - k : LANES;
        memcpy(digits + k, &high, count);
        memcpy(digits + width + k, &low, count);
    }
    return step;
}

int64_t paceline_int8_panel_places(int64_t K, int64_t N) { return (N + LANES - 1) / LANES * int8_panel_size(K); }

void paceline_int8_pack(const int8_t *w, int32_t *panels, int64_t K, int64_t N, int threads) {
    int64_t block = block_columns(places_in(K), INT8_STEP);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t n = 0; n < N; n += block)
        pack_int8_columns(w + n * K, K, n + block < N ? block : N - n, panels + n / LANES * int8_panel_size(K));
}

void paceline_int8_linear(const element *x, int16_t *room, float levels, const int8_t *w, const int32_t *panels,
                          const float *scale, const element *bias, element *y, int64_t M, int64_t K, int64_t N,
                          int threads) {
    int64_t row_bytes = 2 * places_in(K) * 4, size = int8_panel_size(K);
    float *step = (float *)room;
    uint8_t *digits = (uint8_t *)(step + M);
#pragma omp parallel for num_threads(threads) if (M * K > 32768)
    for (int64_t m = 0; m < M; m++) step[m] = quantize_digits(x + m * K, digits + m * row_bytes, K, levels);
    int64_t block = block_columns(places_in(K), INT8_STEP), blocks = (N + block - 1) / block, taken = 0;
#pragma omp parallel num_threads(threads)
    {
        int32_t *scratch = panels ? 0 : aligned_alloc(64, block / LANES * size * sizeof(int32_t));
        for (int64_t b = take_block(&taken), next; b < blocks; b = next) {
            next = take_block(&taken);
            int64_t n = b * block, columns = n + block < N ? block : N - n;
            if (!panels) pack_int8_columns(w + n * K, K, columns, scratch);
            const int32_t *packed = panels ? panels + n / LANES * size : scratch;
            const float *sn = scale + n;
            const element *bn = bias ? bias + n : 0;
            int64_t tiles = M / 3 * (columns / INT8_STEP), m = 0;
            Ahead ahead = ahead_of(panels, size / LANES * 4, panels ? next : blocks, block, N, tiles);
            for (; m + 3 <= M; m += 3)
                int8_rows_3(digits + m * row_bytes, step + m, packed, sn, bn, y + m * N + n, K, N, columns, &ahead);
            const uint8_t *rest = digits + m * row_bytes;
            if (M - m == 2) int8_rows_2(rest, step + m, packed, sn, bn, y + m * N + n, K, N, columns, &ahead);
            if (M - m == 1) int8_rows_1(rest, step + m, packed, sn, bn, y + m * N + n, K, N, columns, &ahead);
        }
        free(scratch);
    }
}
