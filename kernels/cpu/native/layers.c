/* The layers of a decoder, one after another. */

#include <time.h>

/* No arithmetic here: it calls the ops above in the order of rollout/models/decoder.py, without 15 calls from Python
 * per layer. */

typedef struct {
    const void *weight; /* [N, K] elements, or int8 with a scale for each N */
    const int32_t *panels; /* of the weight, or null */
    const float *scale;
    const element *bias;
    float levels; /* of the inputs, for int8 */
    int64_t in_features, out_features;
} Linear;

typedef struct {
    Linear qkv, o, gate_up, down;
    const element *input_norm, *post_attention_norm, *q_norm, *k_norm; /* the last two or neither */
    void *keys, *values;
    float *key_scales, *value_scales;
} Layer;

/* block_ids, offsets [T]: the cache places of the step's tokens; queries and tasks as in paceline_attention. */
typedef struct {
    const float *cos_sin;
    const int64_t *block_ids, *offsets, *table, *queries, *tasks;
    int64_t num_tasks;
} Step;

typedef struct {
    int64_t T, H, N, M, D, I, block_size, lanes;
    float eps;
    int threads;
} Sizes;

/* Buffers of one layer, reused by the next. */
typedef struct {
    element *normed, *qkv, *q, *attended, *delta, *gate_up, *gated;
    float *logsumexp;
    int16_t *integers;
} Rooms;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void apply(const Linear *linear, const element *x, element *y, int16_t *integers, const Sizes *s,
                  double *seconds) {
    double start = now();
    int64_t K = linear->in_features, N = linear->out_features;
    if (linear->scale)
        paceline_int8_linear(x, integers, linear->levels, linear->weight, linear->panels, linear->scale, linear->bias,
                             y, s->T, K, N, s->threads);
    else
        paceline_linear(x, linear->weight, linear->panels, linear->bias, y, s->T, K, N, s->threads);
    *seconds += now() - start;
}

INLINE void add_row(element *x, const element *delta, int64_t H) {
    int64_t h = 0;
    for (; h + LANES <= H; h += LANES) store(x + h, load(delta + h) + load(x + h));
    if (h < H) store_part(x + h, load_part(delta + h, H - h) + load_part(x + h, H - h), H - h);
}

/* x += delta, if there is one; y = norm(x), if there is a weight. */
static void add_and_norm(element *x, const element *delta, const element *weight, element *y, const Sizes *s) {
    int64_t H = s->H;
#pragma omp parallel for num_threads(s->threads) if (s->T * H > 32768)
    for (int64_t t = 0; t < s->T; t++) {
        element *row = x + t * H;
        if (delta) add_row(row, delta + t * H, H);
        if (weight) norm_row(row, weight, y + t * H, H, s->eps);
    }
}

/* Splits the projections of a row: queries go to `q`, keys and values into the cache. */
static void rope_and_write(const Layer *layer, const Step *step, const Rooms *rooms, const Sizes *s) {
    int64_t N = s->N, M = s->M, D = s->D;
#pragma omp parallel for num_threads(s->threads) if (s->T * N * D > 32768)
    for (int64_t t = 0; t < s->T; t++) {
        element *q = rooms->qkv + t * (N + 2 * M) * D, *k = q + N * D, *v = k + M * D, rotated[MAX_HEAD_DIM];
        const float *cos_sin = step->cos_sin + t * D;
        if (layer->q_norm) {
            for (int64_t n = 0; n < N; n++) norm_row(q + n * D, layer->q_norm, q + n * D, D, s->eps);
            for (int64_t m = 0; m < M; m++) norm_row(k + m * D, layer->k_norm, k + m * D, D, s->eps);
        }
        rope_row(q, cos_sin, rooms->q + t * N * D, N, D);
        for (int64_t m = 0; m < M; m++) {
            int64_t first = (step->block_ids[t] * M + m) * s->block_size, at = first + step->offsets[t];
            rope_row(k + m * D, cos_sin, rotated, 1, D);
            if (layer->key_scales) {
                layer->key_scales[at] = quantize_row_int8_t(rotated, (int8_t *)layer->keys + at * D, D, 127);
                layer->value_scales[at] = quantize_row_int8_t(v + m * D, (int8_t *)layer->values + at * D, D, 127);
            } else {
                write_token((element *)layer->keys + first * D, (element *)layer->values + first * D, step->offsets[t],
                            s->lanes, rotated, v + m * D, D);
            }
        }
    }
}

/* Shapes: x [T, H], in place: the residual stream before the first layer and after the last; seconds [2]: the time
 * of linears and of attention is added. */
void paceline_layers(const Layer *layers, int64_t num_layers, element *x, const Step *step, const Rooms *rooms,
                     const Sizes *s, double *seconds) {
    const element *delta = 0;
    for (int64_t i = 0; i < num_layers; i++) {
        const Layer *layer = layers + i;
        int64_t head_stride = s->block_size * s->D;
        add_and_norm(x, delta, layer->input_norm, rooms->normed, s);
        apply(&layer->qkv, rooms->normed, rooms->qkv, rooms->integers, s, seconds);
        rope_and_write(layer, step, rooms, s);
        double start = now();
        paceline_attention(rooms->q, layer->keys, layer->values, layer->key_scales, layer->value_scales, step->table,
                           s->block_size, s->M * head_stride, head_stride, s->lanes, step->queries, step->tasks, step->num_tasks,
                           rooms->attended, rooms->logsumexp, s->N, s->M, s->D, s->threads);
        seconds[1] += now() - start;
        apply(&layer->o, rooms->attended, rooms->delta, rooms->integers, s, seconds);
        add_and_norm(x, rooms->delta, layer->post_attention_norm, rooms->normed, s);
        apply(&layer->gate_up, rooms->normed, rooms->gate_up, rooms->integers, s, seconds);
        paceline_swiglu(rooms->gate_up, rooms->gated, s->T, s->I, s->threads);
        apply(&layer->down, rooms->gated, rooms->delta, rooms->integers, s, seconds);
        delta = rooms->delta;
    }
    add_and_norm(x, delta, 0, 0, s);
}
