/* On panels of bytes: a place is four int8 along K. The instruction multiplies unsigned bytes by signed ones, so an integer x
 * goes in as the two digits of x + 32768 = 256 high + low, or, with at most 127 levels, as the one of x + 128; what was
 * added is taken away with the sum of the weights, which is behind each panel. Sums may wrap on the way, the result fits. */

#define BYTES_PER_PLACE 4
INLINE int64_t byte_places(int64_t K) { return (K + BYTES_PER_PLACE - 1) / BYTES_PER_PLACE; }
INLINE int64_t int8_panel_size(int64_t K) { return (byte_places(K) + 1) * LANES; }

static void pack_int8_columns(const int8_t *w, int64_t K, int64_t columns, int32_t *panels) {
    int64_t places = byte_places(K);
    for (int64_t n = 0; n < columns; n += LANES, panels += int8_panel_size(K)) {
        int64_t k = 0;
        const int8_t *rows[LANES];
        ivec sums = {0};
        for (int64_t i = 0; i < LANES; i++) rows[i] = w + (n + i < columns ? n + i : columns - 1) * K;
        for (; k + 4 * LANES <= K; k += 4 * LANES) {
            ivec vectors[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) memcpy(&vectors[i], rows[i] + k, sizeof(ivec));
            transpose(vectors);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) memcpy(panels + (k / 4 + i) * LANES, &vectors[i], sizeof(ivec));
        }
        for (; k < K; k += 4)
            for (int64_t i = 0; i < LANES; i++) {
                int32_t place = 0;
                memcpy(&place, rows[i] + k, K - k < 4 ? K - k : 4);
                panels[k / 4 * LANES + i] = place;
            }
        const __m512i ones = _mm512_set1_epi8(1);
        for (int64_t p = 0; p < places; p++)
            sums = (ivec)_mm512_dpbusd_epi32((__m512i)sums, ones, _mm512_loadu_si512(panels + p * LANES));
        memcpy(panels + places * LANES, &sums, sizeof(sums));
    }
}

/* ROWS x (COLUMNS panels) outputs from rows of `DIGITS` x [byte places] each. */
INLINE void int8_tile(int ROWS, int COLUMNS, int DIGITS, const uint8_t *digits, const float *step,
                      const int32_t *panels, const float *scale, const element *bias, element *y, int64_t K, int64_t N,
                      int64_t limit) {
    int64_t places = byte_places(K), size = int8_panel_size(K);
    ivec sums[6][4][2];
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
            for (int g = 0; g < DIGITS; g++) {
                int32_t place;
                memcpy(&place, digits + ((r * DIGITS + g) * places + p) * 4, sizeof(place));
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
            uvec sum = DIGITS == 2 ? ((uvec)sums[r][c][0] << 8) + (uvec)sums[r][c][1] - (added << 15)
                                   : (uvec)sums[r][c][0] - (added << 7);
            vec product = (vec)_mm512_cvtepi32_ps((__m512i)sum) * (splat(step[r]) * s);
            store_up_to(y + r * N + n, product + b, left);
        }
    }
}

#define INT8_ROWS(ROWS, DIGITS)                                                                                         \
    static void int8_rows_##ROWS##_##DIGITS(const uint8_t *digits, const float *step, const int32_t *panels,            \
                                            const float *scale, const element *bias, element *y, int64_t K, int64_t N,  \
                                            int64_t columns, Ahead *ahead) {                                            \
        int64_t n = 0, size = int8_panel_size(K) / LANES;                                                               \
        for (; n + 4 * LANES <= columns; n += 4 * LANES) {                                                              \
            fetch(ahead);                                                                                               \
            int8_tile(ROWS, 4, DIGITS, digits, step, panels + n * size, scale + n, bias ? bias + n : 0, y + n, K, N,    \
                      4 * LANES);                                                                                       \
        }                                                                                                               \
        for (; n < columns; n += LANES)                                                                                 \
            int8_tile(ROWS, 1, DIGITS, digits, step, panels + n * size, scale + n, bias ? bias + n : 0, y + n, K, N,    \
                      columns - n);                                                                                     \
    }
INT8_ROWS(1, 1)
INT8_ROWS(2, 1)
INT8_ROWS(3, 1)
INT8_ROWS(6, 1)
INT8_ROWS(1, 2)
INT8_ROWS(2, 2)
INT8_ROWS(3, 2)

INLINE int64_t int8_rows(int64_t rows, int digits_of_each, const uint8_t *digits, const float *step,
                         const int32_t *panels, const float *scale, const element *bias, element *y, int64_t K,
                         int64_t N, int64_t columns, Ahead *ahead) {
#define CALL(ROWS, DIGITS) int8_rows_##ROWS##_##DIGITS(digits, step, panels, scale, bias, y, K, N, columns, ahead)
    if (digits_of_each == 1) {
        if (rows >= 6) return CALL(6, 1), 6;
        if (rows >= 3) return CALL(3, 1), 3;
        if (rows == 2) return CALL(2, 1), 2;
        return CALL(1, 1), 1;
    }
    if (rows >= 3) return CALL(3, 2), 3;
    if (rows == 2) return CALL(2, 2), 2;
    return CALL(1, 2), 1;
#undef CALL
}

/* A row of integers as bytes: high digits, then low ones; or one digit each. */
static float quantize_digits(const element *x, uint8_t *digits, int64_t K, float levels, int num_digits) {
    int64_t width = byte_places(K) * 4;
    float inverse, step = row_step(x, K, levels, &inverse);
    for (int64_t k = 0; k < width; k += LANES) {
        vec value = k < K ? load_up_to(x + k, K - k) : splat(0);
        ivec integers = inverse == 0 ? (ivec){0} : (ivec)_mm512_cvtps_epi32((__m512)(value * splat(inverse)));
        integers += num_digits == 2 ? 32768 : 128;
        __m128i low = _mm512_cvtepi32_epi8((__m512i)integers), high = _mm512_cvtepi32_epi8((__m512i)(integers >> 8));
        int64_t count = width - k < LANES ? width - k : LANES;
        memcpy(digits + k, num_digits == 2 ? &high : &low, count);
        if (num_digits == 2) memcpy(digits + width + k, &low, count);
    }
    return step;
}

int64_t paceline_int8_panel_places(int64_t K, int64_t N) { return (N + LANES - 1) / LANES * int8_panel_size(K); }

INLINE int64_t int8_block_columns(int64_t K) {
    int64_t columns = 131072 / (byte_places(K) * 4) / 64 * 64;
    return columns < 64 ? 64 : columns;
}

void paceline_int8_pack(const int8_t *w, int32_t *panels, int64_t K, int64_t N, int threads) {
    int64_t block = int8_block_columns(K);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t n = 0; n < N; n += block)
        pack_int8_columns(w + n * K, K, n + block < N ? block : N - n, panels + n / LANES * int8_panel_size(K));
}

void paceline_int8_linear(const element *x, int16_t *room, float levels, const int8_t *w, const int32_t *panels,
                          const float *scale, const element *bias, element *y, int64_t M, int64_t K, int64_t N,
                          int threads) {
    int num_digits = levels > 127 ? 2 : 1;
    int64_t row_bytes = num_digits * byte_places(K) * 4, size = int8_panel_size(K);
    float *step = (float *)room;
    uint8_t *digits = (uint8_t *)(step + M);
#pragma omp parallel for num_threads(threads) if (M * K > 32768)
    for (int64_t m = 0; m < M; m++)
        step[m] = quantize_digits(x + m * K, digits + m * row_bytes, K, levels, num_digits);
    int64_t block = int8_block_columns(K), blocks = (N + block - 1) / block, taken = 0;
#pragma omp parallel num_threads(threads)
    {
        int32_t *scratch = panels ? 0 : aligned_alloc(64, block / LANES * size * sizeof(int32_t));
        for (int64_t b = take_block(&taken), next; b < blocks; b = next) {
            next = take_block(&taken);
            int64_t n = b * block, columns = n + block < N ? block : N - n;
            if (!panels) pack_int8_columns(w + n * K, K, columns, scratch);
            const int32_t *packed = panels ? panels + n / LANES * size : scratch;
            Ahead ahead = ahead_of(panels, size / LANES * 4, panels ? next : blocks, block, N, M / 3 * (columns / 64));
            for (int64_t m = 0; m < M;)
                m += int8_rows(M - m, num_digits, digits + m * row_bytes, step + m, packed, scale + n,
                               bias ? bias + n : 0, y + m * N + n, K, N, columns, &ahead);
        }
        free(scratch);
    }
}
