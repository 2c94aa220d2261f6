/* Panels: LANES rows of a matrix stored so that one vector holds the same place of each. What is summed along a row then
 * stays in one lane, and no lanes are joined. */

INLINE int64_t places_in(int64_t row_bytes) { return (row_bytes + 3) / 4; }
INLINE int64_t places_of(int64_t K) { return places_in(K * sizeof(element)); }

/* Columns of W per block, chosen so that a block's panels stay in the second-level cache while all rows use them. */
INLINE int64_t block_columns(int64_t places, int64_t step) {
    int64_t columns = 131072 / (places * 4) / step * step;
    return columns < step ? step : columns;
}

/* Transposes the places of LANES vectors: by halves, quarters and so on. */
INLINE void transpose(ivec *rows) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7,
#if LANES == 16
                       8, 9, 10, 11, 12, 13, 14, 15
#endif
    };
#pragma GCC unroll 4
    for (int distance = LANES / 2; distance; distance /= 2) {
        ivec upper = (lane & distance) != 0;
        ivec first = (~upper & lane) | (upper & (lane - distance + LANES));
        ivec second = (~upper & (lane + distance)) | (upper & (lane + LANES));
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & distance)) {
                ivec a = rows[i], b = rows[i + distance];
                rows[i] = __builtin_shuffle(a, b, first);
                rows[i + distance] = __builtin_shuffle(a, b, second);
            }
    }
}

/* The panel of LANES rows of `row_bytes` each. Zeros fill its last place. Sizes: panel [places, LANES] of 32 bits. */
static void pack_panel(const char *const *rows, int64_t row_bytes, int32_t *panel) {
    int64_t at = 0;
    for (; at + 4 * LANES <= row_bytes; at += 4 * LANES) {
        ivec places[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) memcpy(&places[i], rows[i] + at, sizeof(ivec));
        transpose(places);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) memcpy(panel + (at / 4 + i) * LANES, &places[i], sizeof(ivec));
    }
    for (; at < row_bytes; at += 4)
        for (int64_t i = 0; i < LANES; i++) {
            int32_t place = 0;
            memcpy(&place, rows[i] + at, row_bytes - at < 4 ? row_bytes - at : 4);
            panel[at / 4 * LANES + i] = place;
        }
}

/* Packs up to LANES rows that follow one another from `w` on; missing rows are copies of the last one. */
static void pack_rows(const char *w, int64_t row_bytes, int64_t num_rows, int32_t *panel) {
    const char *rows[LANES];
    for (int64_t i = 0; i < LANES; i++) rows[i] = w + (i < num_rows ? i : num_rows - 1) * row_bytes;
    pack_panel(rows, row_bytes, panel);
}
