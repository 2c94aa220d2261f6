/* Panels: LANES rows of a matrix stored so that one vector holds the same place of each. What is summed along a row then
 * stays in one lane, and no lanes are joined. */

INLINE int64_t places_of(int64_t K) { return (K + PLACE - 1) / PLACE; }

/* 32 bits of `row` from element k on, zeros behind its K elements. */
INLINE int32_t place_at(const element *row, int64_t k, int64_t K) {
    int32_t place = 0;
    memcpy(&place, row + k, (K - k < PLACE ? K - k : PLACE) * sizeof(element));
    return place;
}

/* The places of LANES vectors, transposed: by halves, quarters and so on. */
INLINE void transpose(ivec *rows) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7,
#if LANES == 16
                       8, 9, 10, 11, 12, 13, 14, 15
#endif
    };
#pragma GCC unroll 4
    for (int distance = LANES / 2; distance; distance /= 2) {
        ivec upper = (lane & distance) != 0;
        ivec first = (~upper & lane) | (upper & (lane - distance + LANES)), second = (~upper & (lane + distance)) | (upper & (lane + LANES));
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & distance)) {
                ivec a = rows[i], b = rows[i + distance];
                rows[i] = __builtin_shuffle(a, b, first);
                rows[i + distance] = __builtin_shuffle(a, b, second);
            }
    }
}

/* One panel from up to LANES rows, `rows[i]` each; the last stands for those that are not there. Sizes: panel
 * [places, LANES] of 32 bits. */
INLINE void pack_panel(const element *const *rows, int64_t K, int32_t *panel) {
    int64_t k = 0;
    for (; k + STEP <= K; k += STEP) {
        ivec places[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) places[i] = (ivec)load_raw(rows[i] + k);
        transpose(places);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) memcpy(panel + (k / PLACE + i) * LANES, &places[i], sizeof(ivec));
    }
    for (; k < K; k += PLACE)
        for (int i = 0; i < LANES; i++) panel[k / PLACE * LANES + i] = place_at(rows[i], k, K);
}

/* One place of ROWS rows, `left` elements of it, against that place of COLUMNS panels. The fewer of the two are held. */
INLINE void multiply_step(int ROWS, int COLUMNS, const element *const *rows, int64_t k, const int32_t *panels,
                          int64_t places, int64_t left, vec (*sums)[8]) {
    evec held[8];
    if (ROWS < COLUMNS) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            held[r] = splat_place(left < PLACE ? place_at(rows[r] + k, 0, left) : place_of(rows[r] + k));
            IN_REGISTER(held[r]);
        }
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            evec panel = *(const evec *)(panels + c * places * LANES);
            if (ROWS > 1) IN_REGISTER(panel);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) sums[r][c] = add_products(held[r], panel, sums[r][c]);
        }
    } else {
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            held[c] = *(const evec *)(panels + c * places * LANES);
            IN_REGISTER(held[c]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            evec place = splat_place(left < PLACE ? place_at(rows[r] + k, 0, left) : place_of(rows[r] + k));
            IN_REGISTER(place);
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = add_products(place, held[c], sums[r][c]);
        }
    }
}

/* sums[r][c] = products of row r with the rows in panel c, place by place. */
INLINE void multiply(int ROWS, int COLUMNS, const element *const *rows, const int32_t *panels, int64_t K,
                     vec (*sums)[8]) {
    int64_t places = places_of(K), k = 0;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = splat(0);
    for (; k + PLACE <= K; k += PLACE, panels += LANES)
        multiply_step(ROWS, COLUMNS, rows, k, panels, places, PLACE, sums);
    if (k < K) multiply_step(ROWS, COLUMNS, rows, k, panels, places, K - k, sums);
}
