/* y = x W^T + b */

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
                                   int64_t columns, Ahead *ahead) {                                                \
        int64_t c = 0;                                                                                             \
        for (; c + COLUMNS <= columns; c += COLUMNS) {                                                             \
            fetch(ahead);                                                                                          \
            linear_tile(ROWS, COLUMNS, x, w + c * K, bias ? bias + c : 0, y + c, K, N);                            \
        }                                                                                                          \
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
    int64_t blocks = (N + block - 1) / block, taken = 0;
#pragma omp parallel num_threads(threads)
    for (int64_t b = take_block(&taken), next; b < blocks; b = next) {
        next = take_block(&taken);
        int64_t n = b * block, columns = n + block < N ? block : N - n, m = 0;
        Ahead ahead = ahead_of(w, K * sizeof(*w), next, block, N, M / 4 * ((columns + 2) / 3));
        const float *wn = w + n * K, *bn = bias ? bias + n : 0;
        for (; m + 4 <= M; m += 4) linear_rows_4(x + m * K, wn, bn, y + m * N + n, K, N, columns, &ahead);
        const float *rest = x + m * K;
        if (M - m == 1) linear_rows_1(rest, wn, bn, y + m * N + n, K, N, columns, &ahead);
        if (M - m == 2) linear_rows_2(rest, wn, bn, y + m * N + n, K, N, columns, &ahead);
        if (M - m == 3) linear_rows_3(rest, wn, bn, y + m * N + n, K, N, columns, &ahead);
    }
}
