/* Attention over packed or paged keys, and the cache of the latter. */

#define KEY_BLOCK 64
#define MAX_HEAD_DIM 256
#define MAX_GROUP 32      /* query heads of one KV head */
#define QUERIES_PER_TASK 8
#define ROWS_PER_TASK (QUERIES_PER_TASK * MAX_GROUP)
#if WIDENS && LANES == 16
#define TILE_ROWS 6
#else
#define TILE_ROWS 3
#endif

/* Address of the key (or value) at position p of a sequence: base + table[first entry + p / per_index] * index_stride
 * + head * head_stride + (p % per_index) * D. A paged cache has per_index = block_size; packed rows have 1.
 * With `lanes`, keys and values lie as in a Block, and LANES divides per_index. */
typedef struct {
    const void *keys, *values; /* elements, or int8 with a scale for each D of them */
    const float *key_scales, *value_scales;
    const int64_t *table;
    int64_t per_index, index_stride, head_stride, lanes;
} Cache;

/* Up to KEY_BLOCK keys in the layout for multiplication: panels of LANES keys, and the values of PLACE keys at a time, interleaved. */
typedef struct {
    const int32_t *keys[KEY_BLOCK / LANES], *values[KEY_BLOCK / PLACE];
} Block;

/* A query: its packed row, its position in its sequence, and the index of its first key in the table. */
typedef struct {
    int64_t row, position, first_entry;
} Query;

/* Softmax state of a row (one head of a query), relative to the maximum so far, and the factor that joins the next block. */
typedef struct {
    float maximum, total, keep, add;
    float output[MAX_HEAD_DIM];
} State;

/* A place of ROWS rows, at `at`, times COLUMNS vectors of places. */
INLINE void add_place(int ROWS, int COLUMNS, const factor *const *rows, int64_t at, const evec *places,
                      vec (*sums)[4]) {
#if WIDENS
#pragma GCC unroll 2
    for (int half = 0; half < PLACE; half++) {
        vec held[4];
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) {
            held[c] = half_of((uvec)places[c], half);
            IN_REGISTER(held[c]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            vec row = splat(rows[r][at + half]);
            IN_REGISTER(row);
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; c++) {
                sums[r][c] = fma_lanes(row, held[c], sums[r][c]);
                IN_REGISTER(sums[r][c]); /* or the halves are mixed, and there are too few */
            }
        }
    }
#else
    evec row[TILE_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        row[r] = splat_place(place_of(rows[r] + at));
        IN_REGISTER(row[r]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; c++) {
        evec place = places[c];
        if (ROWS > 1) IN_REGISTER(place);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) sums[r][c] = add_products(row[r], place, sums[r][c]);
    }
#endif
}

INLINE void clear_sums(int ROWS, int COLUMNS, vec (*sums)[4]) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = splat(0);
}

/* ROWS x (PANELS of keys) scores. */
INLINE void score_tile(int ROWS, int PANELS, const factor *const *q, const int32_t *const *keys,
                       float (*scores)[KEY_BLOCK], int64_t c, int64_t D) {
    vec sums[TILE_ROWS][4];
    clear_sums(ROWS, PANELS, sums);
    for (int64_t p = 0; p < D / PLACE; p++) {
        evec places[4];
#pragma GCC unroll 4
        for (int k = 0; k < PANELS; k++) places[k] = *(const evec *)(keys[k] + p * LANES);
        add_place(ROWS, PANELS, q, p * PLACE, places, sums);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int k = 0; k < PANELS; k++) store_floats(scores[r] + c + k * LANES, sums[r][k]);
}

/* ROWS x VECS vectors of the weighted sum of values, joined to what was there; `width` elements of them exist. */
INLINE void value_tile(int ROWS, int VECS, int64_t width, const factor *const *weights, const int32_t *const *values,
                       int64_t count, int64_t d, State *states) {
    vec sums[TILE_ROWS][4];
    clear_sums(ROWS, VECS, sums);
    for (int64_t c = 0; c < count; c += PLACE) {
        evec places[4];
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            const float *value = (const float *)values[c / PLACE] + d + v * LANES;
            places[v] = width < LANES ? (evec)load_floats_part(value, width) : (evec)load_floats(value);
        }
        add_place(ROWS, VECS, weights, c, places, sums);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            float *output = states[r].output + d + v * LANES;
            store_floats(output, load_floats(output) * splat(states[r].keep) + sums[r][v] * splat(states[r].add));
        }
}

/* Scores of the first `count` keys become weights, with zeros after them; the state takes the new maximum and total. */
INLINE void weigh(float *scores, factor *weights, int64_t count, float scale, State *state) {
    vec maximum = splat(-INFINITY), total = splat(0), changes = splat(0);
    for (int64_t c = count; c < KEY_BLOCK; c++) scores[c] = -INFINITY;
    for (int64_t c = 0; c < KEY_BLOCK; c += LANES) {
        vec scaled = load_floats(scores + c) * splat(scale);
        store_floats(scores + c, scaled);
        maximum = choose(scaled > maximum, scaled, maximum); /* a NaN is not greater, and stays among the scores */
    }
    float most = greatest_lane(maximum);
    for (int64_t c = 0; c < KEY_BLOCK; c += LANES) {
        vec x = load_floats(scores + c), weight = choose(x == splat(-INFINITY), splat(0), exp_lanes(x - splat(most)));
        store_factors(weights + c, weight);
        total += weight;
    }
    float joint = most <= state->maximum ? state->maximum : most;
    changes[0] = state->maximum - joint; /* -inf at first, when e^-87 for 0 is as good: what is kept is 0 */
    changes[1] = most - joint;
    changes = exp_lanes(changes);
    state->keep = changes[0];
    state->add = changes[1];
    state->total = state->total * state->keep + sum_lanes(total) * state->add;
    state->maximum = joint;
}

/* Rows of a block, as many at a time as the registers hold. */
#define BY_TILES(ROWS, TILE, ...)                                                        \
    do {                                                                                 \
        int64_t r = 0;                                                                   \
        for (; r + TILE_ROWS <= (ROWS); r += TILE_ROWS) TILE(TILE_ROWS, __VA_ARGS__);     \
        for (; r + 3 <= (ROWS); r += 3) TILE(3, __VA_ARGS__);                            \
        if ((ROWS) - r == 2) TILE(2, __VA_ARGS__);                                       \
        if ((ROWS) - r == 1) TILE(1, __VA_ARGS__);                                       \
    } while (0)

/* One block of keys from position `start`, for all heads of `queries` queries that read it from the same place. Keys
 * outermost, so that they pass through the first-level cache once. `visible` keys of the last query, fewer before. */
static void attend_block(const factor *const *query, const Block *block, int64_t start, const Query *queries,
                         int64_t num_queries, State *states, int64_t G, int64_t D) {
    float scores[ROWS_PER_TASK][KEY_BLOCK] __attribute__((aligned(64)));
    factor weights[ROWS_PER_TASK][KEY_BLOCK] __attribute__((aligned(64)));
    const factor *weight[ROWS_PER_TASK];
    int64_t rows = num_queries * G, visible = queries[num_queries - 1].position + 1 - start;
    float scale = 1.0f / sqrtf((float)D);
    if (visible > KEY_BLOCK) visible = KEY_BLOCK;
    int64_t panels = (visible + LANES - 1) / LANES, c = 0;
    for (; c + 4 <= panels; c += 4) BY_TILES(rows, score_tile, 4, query + r, block->keys + c, scores + r, c * LANES, D);
    for (; c < panels; c++) BY_TILES(rows, score_tile, 1, query + r, block->keys + c, scores + r, c * LANES, D);
    for (int64_t r = 0; r < rows; r++) {
        int64_t count = queries[r / G].position + 1 - start;
        weigh(scores[r], weights[r], count < KEY_BLOCK ? count : KEY_BLOCK, scale, states + r);
        weight[r] = weights[r];
    }
    int64_t d = 0;
    for (; d + 4 * LANES <= D; d += 4 * LANES)
        BY_TILES(rows, value_tile, 4, 4 * LANES, weight + r, block->values, visible, d, states + r);
    for (; d < D; d += LANES)
        BY_TILES(rows, value_tile, 1, D - d < LANES ? D - d : LANES, weight + r, block->values, visible, d, states + r);
}

INLINE void dequantize(const int8_t *q, float scale, element *x, int64_t D) {
    int64_t d = 0;
    for (; d + LANES <= D; d += LANES) {
        vec integers;
#if LANES == 16
        integers = (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(q + d))));
#elif defined(__AVX2__)
        integers = (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(q + d))));
#else
        for (int i = 0; i < LANES; i++) integers[i] = (float)q[d + i];
#endif
        store(x + d, integers * splat(scale));
    }
    for (; d < D; d++) store_few(x + d, (quad){(float)q[d] * scale}, 1);
}

/* Copies rows of D elements into the layout of a Block's values. */
INLINE void interleave(const element *const *rows, int32_t *places, int64_t D) {
    for (int64_t d = 0; d < D; d += LANES) {
        int64_t left = D - d;
        vec both = (vec)load_places(rows[0] + d, rows[PLACE - 1] + d, left);
        memcpy(places + d, &both, (left < LANES ? left : LANES) * sizeof(*places));
    }
}

/* Builds a block in `room` from rows that are not contiguous; int8 rows are converted to elements first. Missing rows are
 * filled with copies of the last row. */
static void lay_out_block(const Cache *cache, int64_t first_entry, int64_t start, int64_t end, int64_t head, int64_t D,
                          int32_t *room, Block *block) {
    element dequantized[KEY_BLOCK * 2 * MAX_HEAD_DIM] __attribute__((aligned(64)));
    const element *keys[KEY_BLOCK], *values[KEY_BLOCK];
    for (int64_t p = start; p < end; p++) {
        int64_t i = p - start, entry = first_entry + p / cache->per_index;
        int64_t at = cache->table[entry] * cache->index_stride + head * cache->head_stride + p % cache->per_index * D;
        if (cache->key_scales) {
            element *key = dequantized + i * 2 * D, *value = key + D;
            dequantize((const int8_t *)cache->keys + at, cache->key_scales[at / D], key, D);
            dequantize((const int8_t *)cache->values + at, cache->value_scales[at / D], value, D);
            keys[i] = key;
            values[i] = value;
        } else {
            keys[i] = (const element *)cache->keys + at;
            values[i] = (const element *)cache->values + at;
        }
    }
    int64_t count = end - start;
    for (; count % LANES; count++) {
        keys[count] = keys[count - 1];
        values[count] = values[count - 1];
    }
    for (int64_t c = 0; c < count; c += LANES, room += LANES * D / PLACE) {
        block->keys[c / LANES] = room;
        pack_panel((const char *const *)keys + c, D * sizeof(element), room);
    }
    for (int64_t c = 0; c < count; c += PLACE, room += D) {
        block->values[c / PLACE] = room;
        interleave(values + c, room, D);
    }
}

/* Finds the keys and values at positions start to end. Cache contents after `end` have no effect: keys there are masked, and
 * a value that shares a place with the last one is set to zero, since 0 times NaN would be NaN. */
INLINE void locate_block(const Cache *cache, int64_t first_entry, int64_t start, int64_t end, int64_t head, int64_t D,
                         int32_t *room, Block *block) {
    if (!cache->lanes) {
        lay_out_block(cache, first_entry, start, end, head, D, room, block);
        return;
    }
    for (int64_t p = start; p < end; p += LANES) {
        int64_t entry = first_entry + p / cache->per_index, c = p - start;
        int64_t at = cache->table[entry] * cache->index_stride + head * cache->head_stride + p % cache->per_index * D;
        block->keys[c / LANES] = (const int32_t *)((const element *)cache->keys + at);
        const int32_t *values = (const int32_t *)((const element *)cache->values + at);
        for (int64_t i = 0; i < LANES / PLACE; i++) block->values[c / PLACE + i] = values + i * D;
    }
    if ((end - start) % PLACE) {
        const int32_t **last = block->values + (end - start) / PLACE;
        for (int64_t d = 0; d < D; d++) room[d] = (*last)[d] & 0xffff;
        *last = room;
    }
}

/* Writes one token's key and value into a cache of `block` [block_size, D] of one head. */
INLINE void write_token(element *keys, element *values, int64_t offset, int64_t lanes, const element *key,
                        const element *value, int64_t D) {
    if (!lanes) {
        memcpy(keys + offset * D, key, D * sizeof(element));
        memcpy(values + offset * D, value, D * sizeof(element));
        return;
    }
    int32_t *panel = (int32_t *)(keys + offset / LANES * LANES * D) + offset % LANES;
    for (int64_t p = 0; p < D / PLACE; p++) panel[p * LANES] = place_of(key + p * PLACE);
    element *places = values + offset / PLACE * PLACE * D + offset % PLACE;
    for (int64_t d = 0; d < D; d++) places[d * PLACE] = value[d];
}

/* Attention of queries to one KV head. All queries share the memory of their first `shared` positions. */
static void attend_task(const element *q, const Cache *cache, element *out, float *logsumexp, const Query *queries,
                        int64_t num_queries, int64_t shared, int64_t head, int64_t N, int64_t G, int64_t D) {
    State states[ROWS_PER_TASK];
    const factor *rows[ROWS_PER_TASK];
    Block block;
    int32_t room[KEY_BLOCK * 2 * MAX_HEAD_DIM / PLACE] __attribute__((aligned(64)));
    int64_t last = 0;
    for (int64_t i = 0; i < num_queries; i++) last = queries[i].position > last ? queries[i].position : last;
    factor wide[WIDENS ? ROWS_PER_TASK * MAX_HEAD_DIM : 1];
    for (int64_t r = 0; r < num_queries * G; r++) {
        rows[r] = row_factors(q + (queries[r / G].row * N + head * G + r % G) * D, D, wide + (WIDENS ? r * D : 0));
        states[r].maximum = -INFINITY;
        states[r].total = 0;
        memset(states[r].output, 0, sizeof(states[r].output));
    }
    for (int64_t start = 0; start <= last; start += KEY_BLOCK)
        for (int64_t i = 0, end; i < num_queries; i = end) {
            int64_t first = queries[i].first_entry;
            for (end = i + 1; end < num_queries && (start < shared || queries[end].first_entry == first);) end++;
            while (i < end && queries[i].position < start) i++; /* these see nothing of it */
            if (i == end) continue;
            int64_t visible = queries[end - 1].position + 1;
            if (visible > start + KEY_BLOCK) visible = start + KEY_BLOCK;
            locate_block(cache, first, start, visible, head, D, room, &block);
            attend_block(rows + i * G, &block, start, queries + i, end - i, states + i * G, G, D);
        }
    for (int64_t r = 0; r < num_queries * G; r++) {
        int64_t at = queries[r / G].row * N + head * G + r % G;
        int64_t d = 0;
        vec total = splat(states[r].total);
        for (; d + LANES <= D; d += LANES) store(out + at * D + d, load_floats(states[r].output + d) / total);
        if (d < D) store_part(out + at * D + d, load_floats(states[r].output + d) / total, D - d);
        logsumexp[at] = states[r].maximum + logf(states[r].total);
    }
}

/* Shapes: q, out [T, N, D], logsumexp [T, N]; no scales where keys and values are elements; queries [Q, 3] as in Query,
 * those of a sequence in ascending order; tasks [W, 3] = first query, queries, positions shared by all. 8 divides D. With
 * `lanes`, the cache is as in Cache. */
void paceline_attention(const element *q, const void *keys, const void *values, const float *key_scales,
                        const float *value_scales, const int64_t *table, int64_t per_index, int64_t index_stride,
                        int64_t head_stride, int64_t lanes, const int64_t *queries, const int64_t *tasks, int64_t W, element *out,
                        float *logsumexp, int64_t N, int64_t M, int64_t D, int threads) {
    Cache cache = {keys, values, key_scales, value_scales, table, per_index, index_stride, head_stride, lanes};
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t w = 0; w < W; w++)
        for (int64_t head = 0; head < M; head++) {
            const int64_t *task = tasks + 3 * w;
            attend_task(q, &cache, out, logsumexp, (const Query *)queries + task[0], task[1], task[2], head, N, N / M,
                        D);
        }
}

/* Keys that a panel of a cache holds. */
int64_t paceline_lanes(void) { return LANES; }
