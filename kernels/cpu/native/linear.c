/* y = x W^T + b, on panels of W. */

#if defined(PACELINE_BFLOAT16) && defined(PACELINE_WIDENS)

/* Rows are multiplied as floats, and so are panels: two products of floats take half as long here as the instruction for two
 * of bfloat16. */
typedef float factor;
#ifndef FETCH
#define FETCH 16
#endif
INLINE int64_t factors_of(int64_t K) { return places_of(K) * PLACE; }
INLINE void store_factors(factor *p, vec x) { store_floats(p, x); }

/* Copies a row into `room`, with zeros after it. */
INLINE const factor *row_factors(const element *x, int64_t K, factor *room) {
    int64_t k = 0;
    for (; k + LANES <= K; k += LANES) store_floats(room + k, load(x + k));
    vec rest = load_part(x + k, K - k);
    memcpy(room + k, &rest, (factors_of(K) - k) * sizeof(float));
    return room;
}

/* Copy of the rows of x. */
INLINE const factor *factors(const element *x, int64_t M, int64_t K, int threads) {
    int64_t width = factors_of(K);
    factor *all = malloc(M * width * sizeof(factor));
#pragma omp parallel for num_threads(threads) if (M * K > 32768)
    for (int64_t m = 0; m < M; m++) row_factors(x + m * K, K, all + m * width);
    return all;
}

/* One place of ROWS rows against that place of COLUMNS panels. */
INLINE void linear_step(int ROWS, int COLUMNS, const factor *x, const int32_t *panels, int64_t K, int64_t left,
                        vec (*sums)[8]) {
    int64_t size = places_of(K) * LANES, width = factors_of(K);
    (void)left;
#pragma GCC unroll 2
    for (int half = 0; half < PLACE; half++) {
        const int32_t *again = panels; /* loaded twice: held for the other half, panels would push sums into memory */
        vec held[8];
        FROM_MEMORY(again);
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            uvec panel = *(const uvec *)(again + c * size);
            if (half == 0 && ROWS > 1) __builtin_prefetch(panels + c * size + FETCH * LANES);
            held[c] = half_of(panel, half);
            IN_REGISTER(held[c]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            vec row = splat(x[r * width + half]);
            IN_REGISTER(row);
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++) {
                sums[r][c] = fma_lanes(row, held[c], sums[r][c]);
                if (ROWS > 1) IN_REGISTER(sums[r][c]); /* or the halves are mixed, and there are too few */
            }
        }
    }
}

#define WIDENS 1
#define WIDEN_ROWS 48 /* from so many on, a block of panels is widened before they use it: the same products in the same order */

/* One column of ROWS rows against that column of COLUMNS panels of floats. */
INLINE void widened_step(int ROWS, int COLUMNS, const factor *x, const float *panels, int64_t K, vec (*sums)[8]) {
    int64_t width = factors_of(K);
    vec held[8];
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; c++) {
        held[c] = *(const vec *)(panels + c * width * LANES);
        IN_REGISTER(held[c]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        vec row = splat(x[r * width]);
        IN_REGISTER(row);
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = fma_lanes(row, held[c], sums[r][c]);
    }
}

/* Panels of `columns` columns as floats. */
static void widen_panels(const int32_t *panels, int64_t columns, int64_t K, float *wide) {
    int64_t places = (columns + LANES - 1) / LANES * places_of(K);
    for (int64_t i = 0; i < places; i++) {
        uvec pairs = *(const uvec *)(panels + i * LANES);
        *(vec *)(wide + 2 * i * LANES) = half_of(pairs, 0);
        *(vec *)(wide + (2 * i + 1) * LANES) = half_of(pairs, 1);
    }
}

#else

#define WIDENS 0
#define WIDEN_ROWS INT64_MAX
INLINE void widened_step(int ROWS, int COLUMNS, const element *x, const float *panels, int64_t K, vec (*sums)[8]) {
    (void)ROWS, (void)COLUMNS, (void)x, (void)panels, (void)K, (void)sums;
}

typedef element factor;
INLINE int64_t factors_of(int64_t K) { return K; }
INLINE void store_factors(factor *p, vec x) { store(p, x); }
INLINE const factor *row_factors(const element *x, int64_t K, factor *room) {
    (void)K, (void)room;
    return x;
}
INLINE const factor *factors(const element *x, int64_t M, int64_t K, int threads) {
    (void)M, (void)K, (void)threads;
    return x;
}

/* 32 bits at x, of which `left` elements exist, in every lane. */
INLINE evec splat_up_to(const element *x, int64_t left) {
    int32_t place = 0;
    memcpy(&place, x, (left < PLACE ? left : PLACE) * sizeof(element));
    return splat_place(place);
}

/* One place of ROWS rows, `left` elements of it, against that place of COLUMNS panels. The fewer of the two are held. */
INLINE void linear_step(int ROWS, int COLUMNS, const element *x, const int32_t *panels, int64_t K, int64_t left,
                        vec (*sums)[8]) {
    int64_t size = places_of(K) * LANES;
    evec held[8];
    if (ROWS < COLUMNS) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            held[r] = splat_up_to(x + r * K, left);
            IN_REGISTER(held[r]);
        }
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            evec panel = *(const evec *)(panels + c * size);
            if (ROWS > 1) IN_REGISTER(panel); /* one row uses each once */
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) sums[r][c] = add_products(held[r], panel, sums[r][c]);
        }
    } else {
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            held[c] = *(const evec *)(panels + c * size);
            IN_REGISTER(held[c]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            evec place = splat_up_to(x + r * K, left);
            IN_REGISTER(place);
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = add_products(place, held[c], sums[r][c]);
        }
    }
}

#endif

/* Places between two prefetches. One large prefetch per tile would fill the line buffers, and nothing would overlap: 6 rows
 * then took as long as loading their weights and computing, one after the other. */
#define FETCH_PLACES 16

/* ROWS x (COLUMNS panels) outputs; columns from `limit` on do not exist. Panels are of floats if WIDE. */
INLINE void linear_tile(int ROWS, int COLUMNS, int WIDE, const factor *x, const int32_t *panels, const element *bias,
                        element *y, int64_t K, int64_t N, int64_t limit, Ahead *ahead) {
    vec sums[6][8];
    int64_t k = 0;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = splat(0);
    while (k + FETCH_PLACES * PLACE <= K) {
        fetch(ahead);
        for (int64_t end = k + FETCH_PLACES * PLACE; k < end; k += WIDE ? 1 : PLACE)
            if (WIDE)
                widened_step(ROWS, COLUMNS, x + k, (const float *)panels + k * LANES, K, sums);
            else
                linear_step(ROWS, COLUMNS, x + k, panels + k / PLACE * LANES, K, PLACE, sums);
    }
    if (WIDE)
        for (; k < factors_of(K); k++)
            widened_step(ROWS, COLUMNS, x + k, (const float *)panels + k * LANES, K, sums);
    for (; k + PLACE <= K; k += PLACE)
        linear_step(ROWS, COLUMNS, x + k, panels + k / PLACE * LANES, K, PLACE, sums);
    if (k < K) linear_step(ROWS, COLUMNS, x + k, panels + k / PLACE * LANES, K, K - k, sums);
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; c++) {
        int64_t n = c * LANES, left = limit - n;
        vec b = !bias ? splat(0) : load_up_to(bias + n, left);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) store_up_to(y + r * N + n, bias ? sums[r][c] + b : sums[r][c], left);
    }
}

/* ROWS rows against all panels of a block, COLUMNS at a time: as many as the registers hold. */
#define LINEAR_ROWS(NAME, ROWS, COLUMNS, WIDE)                                                                            \
    static void NAME(const factor *x, const int32_t *panels, const element *bias, element *y, int64_t K, int64_t N,       \
                     int64_t columns, Ahead *ahead) {                                                                     \
        int64_t n = 0, size = WIDE ? factors_of(K) : places_of(K);                                                        \
        for (; n + COLUMNS * LANES <= columns; n += COLUMNS * LANES)                                                      \
            linear_tile(ROWS, COLUMNS, WIDE, x, panels + n * size, bias ? bias + n : 0, y + n, K, N, COLUMNS * LANES,     \
                        ahead);                                                                                           \
        for (; n < columns; n += LANES)                                                                                   \
            linear_tile(ROWS, 1, WIDE, x, panels + n * size, bias ? bias + n : 0, y + n, K, N, columns - n, ahead);       \
    }
#if LANES == 16 /* and 32 registers */
#define MOST_PANELS 4
LINEAR_ROWS(linear_rows_1, 1, 4, 0)
LINEAR_ROWS(linear_rows_2, 2, 4, 0)
LINEAR_ROWS(linear_rows_3, 3, 4, 0)
LINEAR_ROWS(linear_rows_4, 4, 4, 0)
LINEAR_ROWS(linear_rows_5, 5, 4, 0)
LINEAR_ROWS(linear_rows_6, 6, 4, 0)
#if WIDENS
LINEAR_ROWS(widened_rows_6, 6, 4, 1)
#endif
#else /* 16 */
#define MOST_PANELS 8
LINEAR_ROWS(linear_rows_1, 1, 8, 0)
LINEAR_ROWS(linear_rows_2, 2, 4, 0)
LINEAR_ROWS(linear_rows_3, 3, 4, 0)
LINEAR_ROWS(linear_rows_4, 4, 2, 0)
LINEAR_ROWS(linear_rows_5, 5, 2, 0)
LINEAR_ROWS(linear_rows_6, 6, 2, 0)
#if WIDENS
LINEAR_ROWS(widened_rows_6, 6, 2, 1)
#endif
#endif

INLINE void linear_rows(int64_t rows, const factor *x, const int32_t *panels, const element *bias, element *y,
                        int64_t K, int64_t N, int64_t columns, Ahead *ahead) {
    switch (rows) {
        case 1: linear_rows_1(x, panels, bias, y, K, N, columns, ahead); break;
        case 2: linear_rows_2(x, panels, bias, y, K, N, columns, ahead); break;
        case 3: linear_rows_3(x, panels, bias, y, K, N, columns, ahead); break;
        case 4: linear_rows_4(x, panels, bias, y, K, N, columns, ahead); break;
        case 5: linear_rows_5(x, panels, bias, y, K, N, columns, ahead); break;
        default: linear_rows_6(x, panels, bias, y, K, N, columns, ahead);
    }
}

static void pack_columns(const element *w, int64_t K, int64_t columns, int32_t *panels) {
    for (int64_t n = 0; n < columns; n += LANES)
        pack_rows((const char *)(w + n * K), K * sizeof(element), columns - n, panels + n * places_of(K));
}

/* Number of 32-bit places in the panels of [N, K]. */
int64_t paceline_panel_places(int64_t K, int64_t N) { return (N + LANES - 1) / LANES * LANES * places_of(K); }

/* Shapes: w [N, K], panels [N rounded up to LANES, places of K] of 32 bits. */
void paceline_pack(const element *w, int32_t *panels, int64_t K, int64_t N, int threads) {
    int64_t block = block_columns(places_of(K), MOST_PANELS * LANES);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t n = 0; n < N; n += block)
        pack_columns(w + n * K, K, n + block < N ? block : N - n, panels + n * places_of(K));
}

/* Shapes: x [M, K], bias [N] or null, y [M, N]; panels as above or, where they are null, w [N, K], which threads then
 * pack block by block: the result has the same bits, and many rows take the same time. */
void paceline_linear(const element *x, const element *w, const int32_t *panels, const element *bias, element *y,
                     int64_t M, int64_t K, int64_t N, int threads) {
    int64_t size = places_of(K), step = MOST_PANELS * LANES, block = block_columns(size, step);
    int64_t blocks = (N + block - 1) / block, taken = 0;
    int64_t width = factors_of(K);
    const factor *all = factors(x, M, K, threads);
#pragma omp parallel num_threads(threads)
    {
        int32_t *room = panels ? 0 : aligned_alloc(64, block * size * sizeof(int32_t));
        float *widened = WIDENS && M >= WIDEN_ROWS ? aligned_alloc(64, block * width * sizeof(float)) : 0;
        for (int64_t b = take_block(&taken), next; b < blocks; b = next) {
            next = take_block(&taken);
            int64_t n = b * block, columns = n + block < N ? block : N - n;
            if (!panels) pack_columns(w + n * K, K, columns, room);
            const int32_t *packed = panels ? panels + n * size : room;
            int64_t tiles = (M + 5) / 6 * ((columns + step - 1) / step) * (size / FETCH_PLACES);
            Ahead ahead = ahead_of(panels, size * 4, panels ? next : blocks, block, N, tiles);
            int64_t m = 0;
#if WIDENS
            if (M >= WIDEN_ROWS) {
                widen_panels(packed, columns, K, widened);
                for (; m + 6 <= M; m += 6)
                    widened_rows_6(all + m * width, (const int32_t *)widened, bias ? bias + n : 0, y + m * N + n, K, N,
                                   columns, &ahead);
            }
#endif
            for (; m < M; m += 6) {
                int64_t rows = M - m < 6 ? M - m : 6;
                linear_rows(rows, all + m * width, packed, bias ? bias + n : 0, y + m * N + n, K, N, columns, &ahead);
            }
        }
        free(widened);
        free(room);
    }
    if (WIDENS) free((void *)all);
}
