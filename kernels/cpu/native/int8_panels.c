/* int8 linear on panels of bytes: a place is four int8 along K. The instruction multiplies unsigned bytes by signed ones.
 *
 * An integer is 256 high + low - 128, low a byte, and high is 0 for nearly all. So all low digits are multiplied, and of the
 * high ones only those places in which some row of a tile has one: 2 to 10 % of them. 128 is added to
 * each digit to make it unsigned; sums of weights, stored after each panel, remove that again. Intermediate sums may wrap;
 * the result fits. */

#define INT8_ROWS_AT_ONCE 6
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

/* Digits of ROWS rows that are multiplied together: [ROWS, places] of low ones, then of high ones; and the places in which
 * any high digit is not 0. */
typedef struct {
    const int32_t *low, *high;
    const float *step;
    const uint16_t *places;
    int64_t num_places;
} Digits;

/* Products of the high digits of ROWS x (COLUMNS panels), times 256: the initial values of the sums. */
INLINE void int8_high(int ROWS, int COLUMNS, const Digits *digits, const int32_t *panels, int64_t K, ivec (*sums)[4]) {
    const __m512i added = _mm512_set1_epi8((char)128);
    int64_t places = places_in(K), size = int8_panel_size(K);
    ivec taken[2];
#pragma GCC unroll 2
    for (int c = 0; c < COLUMNS; c++) {
        taken[c] = (ivec){0};
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) sums[r][c] = (ivec){0};
    }
    for (int64_t i = 0; i < digits->num_places; i++) {
        int64_t p = digits->places[i];
        __m512i w[2];
#pragma GCC unroll 2
        for (int c = 0; c < COLUMNS; c++) {
            w[c] = _mm512_loadu_si512(panels + c * size + p * LANES);
            taken[c] = (ivec)_mm512_dpbusd_epi32((__m512i)taken[c], added, w[c]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            __m512i x = _mm512_set1_epi32(digits->high[r * places + p]);
#pragma GCC unroll 2
            for (int c = 0; c < COLUMNS; c++)
                sums[r][c] = (ivec)_mm512_dpbusd_epi32((__m512i)sums[r][c], x, w[c]);
        }
    }
#pragma GCC unroll 2
    for (int c = 0; c < COLUMNS; c++)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) sums[r][c] = (ivec)((uvec)(sums[r][c] - taken[c]) << 8);
}

/* ROWS x (COLUMNS panels) outputs. */
INLINE void int8_tile(int ROWS, int COLUMNS, const Digits *digits, const int32_t *panels, const float *scale,
                      const element *bias, element *y, int64_t K, int64_t N, int64_t limit) {
    int64_t places = places_in(K), size = int8_panel_size(K);
    ivec sums[INT8_ROWS_AT_ONCE][4];
    if (COLUMNS == 4) {
        int8_high(ROWS, 2, digits, panels, K, sums);
        ivec(*others)[4] = (ivec(*)[4])(sums[0] + 2);
        int8_high(ROWS, 2, digits, panels + 2 * size, K, others);
    } else
        int8_high(ROWS, 1, digits, panels, K, sums);
    for (int64_t p = 0; p < places; p++) {
        ivec w[4];
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            w[c] = (ivec)_mm512_loadu_si512(panels + c * size + p * LANES);
            if (ROWS > 1) IN_REGISTER(w[c]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            __m512i x = _mm512_set1_epi32(digits->low[r * places + p]);
            IN_REGISTER(x);
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++)
                sums[r][c] = (ivec)_mm512_dpbusd_epi32((__m512i)sums[r][c], x, (__m512i)w[c]);
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
            uvec sum = (uvec)sums[r][c] - (added << 7);
            vec product = (vec)_mm512_cvtepi32_ps((__m512i)sum) * (splat(digits->step[r]) * s);
            store_up_to(y + r * N + n, product + b, left);
        }
    }
}

#define INT8_ROWS(ROWS)                                                                                                \
    static void int8_rows_##ROWS(const Digits *digits, const int32_t *panels, const float *scale, const element *bias, \
                                 element *y, int64_t K, int64_t N, int64_t columns, Ahead *ahead) {                    \
        int64_t n = 0, size = int8_panel_size(K) / LANES;                                                              \
        for (; n + INT8_STEP <= columns; n += INT8_STEP) {                                                             \
            fetch(ahead);                                                                                              \
            int8_tile(ROWS, 4, digits, panels + n * size, scale + n, bias ? bias + n : 0, y + n, K, N, INT8_STEP);     \
        }                                                                                                              \
        for (; n < columns; n += LANES)                                                                                \
            int8_tile(ROWS, 1, digits, panels + n * size, scale + n, bias ? bias + n : 0, y + n, K, N, columns - n);   \
    }
INT8_ROWS(1)
INT8_ROWS(2)
INT8_ROWS(3)
INT8_ROWS(4)
INT8_ROWS(5)
INT8_ROWS(6)

INLINE void int8_rows(int64_t rows, const Digits *digits, const int32_t *panels, const float *scale,
                      const element *bias, element *y, int64_t K, int64_t N, int64_t columns, Ahead *ahead) {
    switch (rows) {
        case 1: int8_rows_1(digits, panels, scale, bias, y, K, N, columns, ahead); break;
        case 2: int8_rows_2(digits, panels, scale, bias, y, K, N, columns, ahead); break;
        case 3: int8_rows_3(digits, panels, scale, bias, y, K, N, columns, ahead); break;
        case 4: int8_rows_4(digits, panels, scale, bias, y, K, N, columns, ahead); break;
        case 5: int8_rows_5(digits, panels, scale, bias, y, K, N, columns, ahead); break;
        default: int8_rows_6(digits, panels, scale, bias, y, K, N, columns, ahead);
    }
}

/* Splits a row of integers into digits, and marks the places with a high digit. */
static float quantize_digits(const element *x, uint8_t *low, uint8_t *high, uint8_t *marks, int64_t K, float levels) {
    int64_t width = places_in(K) * 4;
    float inverse, step = activation_step(x, K, levels, &inverse);
    for (int64_t k = 0; k < width; k += LANES) {
        vec value = k < K && inverse != 0 ? load_up_to(x + k, K - k) : splat(0);
        ivec shifted = to_integers(value * splat(inverse)) + 128, upper = shifted >> 8;
        __m128i lows = _mm512_cvtepi32_epi8((__m512i)shifted), highs = _mm512_cvtepi32_epi8((__m512i)(upper + 128));
        int64_t count = width - k < LANES ? width - k : LANES;
        memcpy(low + k, &lows, count);
        memcpy(high + k, &highs, count);
        uint16_t marked = _mm512_cmpneq_epi32_mask((__m512i)upper, _mm512_setzero_si512());
        for (int64_t i = 0; i < count / 4; i++) marks[k / 4 + i] |= (marked >> 4 * i & 15) != 0;
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

/* Memory of INT8_ROWS_AT_ONCE rows: low digits, high digits, steps, marks of places, and after them the list of places. */
INLINE int64_t int8_group_bytes(int64_t K) {
    return (INT8_ROWS_AT_ONCE * (places_in(K) * 8 + 4) + places_in(K) * 3 + 7) / 8 * 8;
}

int64_t paceline_int8_room(int64_t M, int64_t K) {
    int64_t groups = (M + INT8_ROWS_AT_ONCE - 1) / INT8_ROWS_AT_ONCE;
    return groups * (sizeof(Digits) + int8_group_bytes(K)) / sizeof(int16_t) + 8;
}

static Digits make_digits(const element *x, uint8_t *room, int64_t rows, int64_t K, float levels) {
    int64_t places = places_in(K), width = places * 4;
    uint8_t *low = room, *high = low + rows * width;
    float *step = (float *)(high + rows * width);
    uint16_t *list = (uint16_t *)(step + rows);
    uint8_t *marks = (uint8_t *)(list + places);
    Digits digits = {(const int32_t *)low, (const int32_t *)high, step, list, 0};
    memset(marks, 0, places);
    for (int64_t r = 0; r < rows; r++)
        step[r] = quantize_digits(x + r * K, low + r * width, high + r * width, marks, K, levels);
    for (int64_t p = 0; p < places; p++) {
        list[digits.num_places] = (uint16_t)p;
        digits.num_places += marks[p];
    }
    return digits;
}

void paceline_int8_linear(const element *x, int16_t *room, float levels, const int8_t *w, const int32_t *panels,
                          const float *scale, const element *bias, element *y, int64_t M, int64_t K, int64_t N,
                          int threads) {
    int64_t size = int8_panel_size(K), groups = (M + INT8_ROWS_AT_ONCE - 1) / INT8_ROWS_AT_ONCE;
    int64_t group_bytes = int8_group_bytes(K);
    Digits *digits = (Digits *)(((uintptr_t)room + 7) / 8 * 8);
    uint8_t *bytes = (uint8_t *)(digits + groups);
#pragma omp parallel for num_threads(threads) if (M * K > 32768)
    for (int64_t g = 0; g < groups; g++) {
        int64_t m = g * INT8_ROWS_AT_ONCE, rows = M - m < INT8_ROWS_AT_ONCE ? M - m : INT8_ROWS_AT_ONCE;
        digits[g] = make_digits(x + m * K, bytes + g * group_bytes, rows, K, levels);
    }
    int64_t block = block_columns(places_in(K), INT8_STEP), blocks = (N + block - 1) / block, taken = 0;
#pragma omp parallel num_threads(threads)
    {
        int32_t *scratch = panels ? 0 : aligned_alloc(64, block / LANES * size * sizeof(int32_t));
        for (int64_t b = take_block(&taken), next; b < blocks; b = next) {
            next = take_block(&taken);
            int64_t n = b * block, columns = n + block < N ? block : N - n;
            if (!panels) pack_int8_columns(w + n * K, K, columns, scratch);
            const int32_t *packed = panels ? panels + n / LANES * size : scratch;
            int64_t tiles = groups * (columns / INT8_STEP);
            Ahead ahead = ahead_of(panels, size / LANES * 4, panels ? next : blocks, block, N, tiles);
            for (int64_t g = 0; g < groups; g++) {
                int64_t m = g * INT8_ROWS_AT_ONCE, rows = M - m < INT8_ROWS_AT_ONCE ? M - m : INT8_ROWS_AT_ONCE;
                int8_rows(rows, digits + g, packed, scale + n, bias ? bias + n : 0, y + m * N + n, K, N, columns, &ahead);
            }
        }
        free(scratch);
    }
}
