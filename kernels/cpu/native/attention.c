/* Attention over packed or paged keys, and the cache of the latter. */

#define KEY_BLOCK 64
#define MAX_HEAD_DIM 256
#define MAX_GROUP 32      /* query heads of one KV head */
#define QUERIES_PER_TASK 8
#define ROWS_PER_TASK (QUERIES_PER_TASK * MAX_GROUP)

/* Where the key (or value) at a position of a sequence is: base + table[first entry + p / per_index] * index_stride
 * + head * head_stride + (p % per_index) * D. A paged cache has per_index = block_size; packed rows have 1. */
typedef struct {
    const void *keys, *values; /* elements, or int8 with a scale for each D of them */
    const float *key_scales, *value_scales;
    const int64_t *table;
    int64_t per_index, index_stride, head_stride;
} Cache;

/* A query's packed row, its position in its sequence, and where its keys begin in the table. */
typedef struct {
    int64_t row, position, first_entry;
} Query;

/* What a row (a head of a query) has folded so far, on the maximum seen so far; and how the next block joins it. */
typedef struct {
    float maximum, total, keep, add;
    float output[MAX_HEAD_DIM];
} State;

/* ROWS x 4 scores. With 12 sums and what is held of the rows, one of 16 registers is left: for a key. */
INLINE void score_tile(int ROWS, const element *const *q, const element *const *keys, float (*scores)[KEY_BLOCK],
                       int64_t c, int64_t D) {
    vec sums[3][4];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) sums[r][k] = splat(0);
    for (int64_t d = 0; d < D; d += STEP) {
        int64_t left = D - d;
        evec query[3];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            query[r] = load_raw_up_to(q[r] + d, left);
            IN_REGISTER(query[r]);
        }
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            evec key = load_raw_up_to(keys[c + k] + d, left);
            IN_REGISTER(key);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) sums[r][k] = add_products(query[r], key, sums[r][k]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        quad sum = sum_four(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
        memcpy(scores[r] + c, &sum, sizeof(sum));
    }
}

/* ROWS x VECS vectors of the weighted sum of values, joined to what was there; `width` elements of them exist. */
INLINE void value_tile(int ROWS, int VECS, int64_t width, element (*weights)[KEY_BLOCK], const element *const *values,
                       int64_t count, int64_t d, State *states) {
    vec sums[3][4];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) sums[r][v] = splat(0);
    for (int64_t c = 0; c < count; c += PLACE) {
        evec weight[3];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            weight[r] = splat_place(place_of(weights[r] + c));
            IN_REGISTER(weight[r]);
        }
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            int64_t at = d + v * LANES, left = width < VECS * LANES ? width : LANES;
            evec value = load_places(values[c] + at, values[c + PLACE - 1] + at, left);
            IN_REGISTER(value);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) sums[r][v] = add_products(weight[r], value, sums[r][v]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) {
            float *output = states[r].output + d + v * LANES;
            store_floats(output, load_floats(output) * splat(states[r].keep) + sums[r][v] * splat(states[r].add));
        }
}

/* Scores of the first `count` keys become weights, zeros behind them; maximum and total go into the state. */
INLINE void weigh(float *scores, element *weights, int64_t count, float scale, State *state) {
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
        store(weights + c, weight);
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

#define BY_THREE(ROWS, TILE, ...)                                   \
    do {                                                            \
        int64_t r = 0;                                              \
        for (; r + 3 <= (ROWS); r += 3) TILE(3, __VA_ARGS__);       \
        if ((ROWS) - r == 2) TILE(2, __VA_ARGS__);                  \
        if ((ROWS) - r == 1) TILE(1, __VA_ARGS__);                  \
    } while (0)

/* One block of keys from position `start`, for all heads of `queries` queries that read it from the same place. Keys
 * outermost, so that they pass through the first-level cache once. `visible` keys of the last query, fewer before. */
static void attend_block(const element *q, const element *const *keys, const element *const *values, int64_t start,
                         const Query *queries, int64_t num_queries, State *states, int64_t head, int64_t N, int64_t G,
                         int64_t D) {
    float scores[ROWS_PER_TASK][KEY_BLOCK] __attribute__((aligned(64)));
    element weights[ROWS_PER_TASK][KEY_BLOCK] __attribute__((aligned(64)));
    const element *query[ROWS_PER_TASK];
    int64_t rows = num_queries * G, visible = queries[num_queries - 1].position + 1 - start;
    float scale = 1.0f / sqrtf((float)D);
    if (visible > KEY_BLOCK) visible = KEY_BLOCK;
    for (int64_t r = 0; r < rows; r++) query[r] = q + (queries[r / G].row * N + head * G + r % G) * D;
    for (int64_t c = 0; c < visible; c += 4) {
        for (int64_t k = c; k < c + 4; k++) /* few rows wait for memory: fetch the values meanwhile */
            for (int64_t d = 0; d < D; d += 64 / sizeof(element)) __builtin_prefetch(values[k] + d);
        BY_THREE(rows, score_tile, query + r, keys, scores + r, c, D);
    }
    for (int64_t r = 0; r < rows; r++) {
        int64_t count = queries[r / G].position + 1 - start;
        weigh(scores[r], weights[r], count < KEY_BLOCK ? count : KEY_BLOCK, scale, states + r);
    }
    int64_t d = 0;
    for (; d + 4 * LANES <= D; d += 4 * LANES)
        BY_THREE(rows, value_tile, 4, 4 * LANES, weights + r, values, visible, d, states + r);
    for (; d < D; d += LANES)
        BY_THREE(rows, value_tile, 1, D - d < LANES ? D - d : LANES, weights + r, values, visible, d, states + r);
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

/* Where the keys and values at positions start to end are, as elements; those of int8 are made in `room`. The last ones
 * stand for the rest of a tile too. */
INLINE void locate_block(const Cache *cache, int64_t first_entry, int64_t start, int64_t end, int64_t head, int64_t D,
                         element *room, const element **keys, const element **values) {
    int64_t entry = first_entry + start / cache->per_index, offset = start % cache->per_index;
    for (int64_t p = start; p < end; p++, offset++) {
        if (offset == cache->per_index) {
            offset = 0;
            entry++;
        }
        int64_t at = cache->table[entry] * cache->index_stride + head * cache->head_stride + offset * D;
        if (cache->key_scales) {
            element *key = room + (p - start) * 2 * D, *value = key + D;
            dequantize((const int8_t *)cache->keys + at, cache->key_scales[at / D], key, D);
            dequantize((const int8_t *)cache->values + at, cache->value_scales[at / D], value, D);
            keys[p - start] = key;
            values[p - start] = value;
        } else {
            keys[p - start] = (const element *)cache->keys + at;
            values[p - start] = (const element *)cache->values + at;
        }
    }
    for (int64_t c = end - start; c % 4; c++) {
        keys[c] = keys[end - start - 1];
        values[c] = values[end - start - 1];
    }
}

/* Queries against one KV head. The first `shared` positions of all are in the same place. */
static void attend_task(const element *q, const Cache *cache, element *out, float *logsumexp, const Query *queries,
                        int64_t num_queries, int64_t shared, int64_t head, int64_t N, int64_t G, int64_t D) {
    State states[ROWS_PER_TASK];
    const element *keys[KEY_BLOCK], *values[KEY_BLOCK];
    element room[KEY_BLOCK * 2 * MAX_HEAD_DIM] __attribute__((aligned(64)));
    int64_t last = 0;
    for (int64_t i = 0; i < num_queries; i++) last = queries[i].position > last ? queries[i].position : last;
    for (int64_t r = 0; r < num_queries * G; r++) {
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
            locate_block(cache, first, start, visible, head, D, room, keys, values);
            attend_block(q, keys, values, start, queries + i, end - i, states + i * G, head, N, G, D);
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
 * those of a sequence in ascending order; tasks [W, 3] = first query, queries, positions shared by all. 8 divides D. */
void paceline_attention(const element *q, const void *keys, const void *values, const float *key_scales,
                        const float *value_scales, const int64_t *table, int64_t per_index, int64_t index_stride,
                        int64_t head_stride, const int64_t *queries, const int64_t *tasks, int64_t W, element *out,
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
