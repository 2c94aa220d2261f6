/* y = x W^T + b */

/* The next `left` elements along K for ROWS x COLUMNS sums: STEP of them, but at the end. The fewer of the two are held. */
INLINE void linear_step(int ROWS, int COLUMNS, const element *x, const element *w, int64_t K, int64_t left,
                        vec (*sums)[8]) {
    evec held[8];
    if (ROWS < COLUMNS) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            held[r] = load_raw_up_to(x + r * K, left);
            IN_REGISTER(held[r]);
        }
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            evec wk = load_raw_up_to(w + c * K, left);
            if (ROWS > 1) IN_REGISTER(wk); /* one row uses each once */
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) sums[r][c] = add_products(held[r], wk, sums[r][c]);
        }
    } else {
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            held[c] = load_raw_up_to(w + c * K, left);
            IN_REGISTER(held[c]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            evec xk = load_raw_up_to(x + r * K, left);
            IN_REGISTER(xk);
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = add_products(xk, held[c], sums[r][c]);
        }
    }
}

/* ROWS x COLUMNS outputs. Both operands run along K, so weights need no packing. */
INLINE void linear_tile(int ROWS, int COLUMNS, const element *x, const element *w, const element *bias, element *y,
                        int64_t K, int64_t N) {
    vec sums[6][8];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = splat(0);
    int64_t k = 0;
    for (; k + STEP <= K; k += STEP) linear_step(ROWS, COLUMNS, x + k, w + k, K, STEP, sums);
    if (k < K) linear_step(ROWS, COLUMNS, x + k, w + k, K, K - k, sums);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c += 4) {
            int few = COLUMNS - c < 4 ? COLUMNS - c : 4;
            quad sum = {0};
            if (few == 4)
                sum = sum_four(sums[r][c], sums[r][c + 1], sums[r][c + 2], sums[r][c + 3]);
            else
#pragma GCC unroll 8
                for (int i = 0; i < few; i++) sum[i] = sum_lanes(sums[r][c + i]);
            if (bias)
#pragma GCC unroll 8
                for (int i = 0; i < few; i++) sum[i] += as_float(bias + c + i);
            store_few(y + r * N + c, sum, few);
        }
}

/* ROWS rows against all columns of a block, COLUMNS at a time: as many as the registers hold. */
#define LINEAR_ROWS(ROWS, COLUMNS)                                                                                 \
    static void linear_rows_##ROWS(const element *x, const element *w, const element *bias, element *y, int64_t K, \
                                   int64_t N, int64_t columns, Ahead *ahead) {                                     \
        int64_t c = 0;                                                                                             \
        for (; c + COLUMNS <= columns; c += COLUMNS) {                                                             \
            fetch(ahead);                                                                                          \
            linear_tile(ROWS, COLUMNS, x, w + c * K, bias ? bias + c : 0, y + c, K, N);                            \
        }                                                                                                          \
        for (; c < columns; c++) linear_tile(ROWS, 1, x, w + c * K, bias ? bias + c : 0, y + c, K, N);             \
    }
#if LANES == 16 /* and 32 registers */
#define MOST_ROWS 6
#define FEWEST_COLUMNS 4
LINEAR_ROWS(1, 8)
LINEAR_ROWS(2, 8)
LINEAR_ROWS(3, 8)
LINEAR_ROWS(4, 4)
LINEAR_ROWS(5, 4)
LINEAR_ROWS(6, 4)
#else /* 16 */
#define MOST_ROWS 4
#define FEWEST_COLUMNS 3
LINEAR_ROWS(1, 8)
LINEAR_ROWS(2, 4)
LINEAR_ROWS(3, 3)
LINEAR_ROWS(4, 3)
#endif

INLINE void linear_rows(int64_t rows, const element *x, const element *w, const element *bias, element *y, int64_t K,
                        int64_t N, int64_t columns, Ahead *ahead) {
    switch (rows) {
        case 1: linear_rows_1(x, w, bias, y, K, N, columns, ahead); break;
        case 2: linear_rows_2(x, w, bias, y, K, N, columns, ahead); break;
        case 3: linear_rows_3(x, w, bias, y, K, N, columns, ahead); break;
        case 4: linear_rows_4(x, w, bias, y, K, N, columns, ahead); break;
#if LANES == 16
        case 5: linear_rows_5(x, w, bias, y, K, N, columns, ahead); break;
        case 6: linear_rows_6(x, w, bias, y, K, N, columns, ahead); break;
#endif
    }
}

/* Shapes: x [M, K], w [N, K], bias [N] or null, y [M, N]. */
void paceline_linear(const element *x, const element *w, const element *bias, element *y, int64_t M, int64_t K,
                     int64_t N, int threads) {
    /* the weights of a block stay in the second-level cache while all rows pass by */
    int64_t block = 131072 / (K * (int64_t)sizeof(element)) / 24 * 24;
    if (block < 24) block = 24;
    int64_t blocks = (N + block - 1) / block, taken = 0;
#pragma omp parallel num_threads(threads)
    for (int64_t b = take_block(&taken), next; b < blocks; b = next) {
        next = take_block(&taken);
        int64_t n = b * block, columns = n + block < N ? block : N - n;
        int64_t tiles = (columns + FEWEST_COLUMNS - 1) / FEWEST_COLUMNS;
        Ahead ahead = ahead_of(w, K * sizeof(*w), next, block, N, M / MOST_ROWS * tiles);
        for (int64_t m = 0; m < M; m += MOST_ROWS)
            linear_rows(M - m < MOST_ROWS ? M - m : MOST_ROWS, x + m * K, w + n * K, bias ? bias + n : 0, y + m * N + n,
                        K, N, columns, &ahead);
    }
}
