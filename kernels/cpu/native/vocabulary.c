/* Sums over the vocabulary, shared by the sampler and the loss. */

#define VOCAB_BLOCK 1024

/* x = logits / temperature, minus their maximum. */
INLINE vec scaled_lanes(vec logits, float inverse_temperature, float maximum) {
    return logits * splat(inverse_temperature) - splat(maximum);
}

/* Lanes past the end have weight 0. */
INLINE vec weight_lanes(vec scaled, int64_t left) {
    vec weight = exp_lanes(scaled);
    weight = choose(scaled == splat(-INFINITY), splat(0), weight);
    if (left < LANES)
        for (int64_t i = left; i < LANES; i++) weight[i] = 0;
    return weight;
}

INLINE float greatest_scaled(const element *logits, int64_t V, float inverse_temperature) {
    vec greatest = splat(-INFINITY), not_a_number = splat(0);
    int64_t v = 0;
    for (; v + LANES <= V; v += LANES) {
        vec x = load(logits + v) * splat(inverse_temperature);
        greatest = choose(x > greatest, x, greatest);
        not_a_number = choose(x != x, x, not_a_number);
    }
    float most = -INFINITY;
    for (int i = 0; i < LANES; i++) {
        most = greatest[i] > most ? greatest[i] : most;
        if (not_a_number[i] != 0) return NAN;
    }
    for (; v < V; v++) {
        float x = as_float(logits + v) * inverse_temperature;
        if (x != x) return NAN;
        most = x > most ? x : most;
    }
    return most;
}

/* Shapes: logits [T, V], inverse_temperature [T], maximum [T], cumulative [T, J]: sums of e^x up to and with each block of
 * 1,024; moment [T] = sum of x e^x, or null. */
void paceline_vocab_sums(const element *logits, const float *inverse_temperature, float *maximum, float *cumulative,
                         float *moment, int64_t T, int64_t V, int threads) {
    int64_t J = (V + VOCAB_BLOCK - 1) / VOCAB_BLOCK;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t t = 0; t < T; t++) {
        const element *row = logits + t * V;
        float inverse = inverse_temperature[t], most = greatest_scaled(row, V, inverse), total = 0, products = 0;
        for (int64_t j = 0; j < J; j++) {
            vec sums = splat(0), moments = splat(0);
            int64_t end = (j + 1) * VOCAB_BLOCK < V ? (j + 1) * VOCAB_BLOCK : V;
            for (int64_t v = j * VOCAB_BLOCK; v < end; v += LANES) {
                vec scaled = scaled_lanes(load_up_to(row + v, end - v), inverse, most);
                vec weight = weight_lanes(scaled, end - v);
                sums += weight;
                if (moment) moments += choose(weight == splat(0), splat(0), scaled * weight);
            }
            total += sum_lanes(sums);
            products += sum_lanes(moments);
            cumulative[t * J + j] = total;
        }
        maximum[t] = most;
        if (moment) moment[t] = products;
    }
}

/* The first token whose cumulative weight exceeds u times the total; the last of positive weight, if rounding leaves none.
 * Shapes: as above, uniforms [T], tokens [T]. */
void paceline_sample(const element *logits, const float *inverse_temperature, const float *maximum,
                     const float *cumulative, const float *uniforms, int64_t *tokens, int64_t T, int64_t V) {
    int64_t J = (V + VOCAB_BLOCK - 1) / VOCAB_BLOCK;
    for (int64_t t = 0; t < T; t++) {
        const element *row = logits + t * V;
        const float *sums = cumulative + t * J;
        float target = uniforms[t] * sums[J - 1], weights[VOCAB_BLOCK + LANES];
        int64_t j = 0, last = 0;
        while (j < J - 1 && !(sums[j] > target)) j++;
        while (j > 0 && !(sums[j] > sums[j - 1])) j--; /* not past the last block of positive weight */
        float sum = j ? sums[j - 1] : 0;
        int64_t begin = j * VOCAB_BLOCK, end = begin + VOCAB_BLOCK < V ? begin + VOCAB_BLOCK : V, v = begin;
        for (; v < end; v += LANES) {
            vec scaled = scaled_lanes(load_up_to(row + v, end - v), inverse_temperature[t], maximum[t]);
            store_floats(weights + v - begin, weight_lanes(scaled, end - v));
        }
        for (v = begin, last = begin; v < end && !(sum > target); v++) {
            sum += weights[v - begin];
            if (weights[v - begin] > 0) last = v;
        }
        tokens[t] = last;
    }
}
