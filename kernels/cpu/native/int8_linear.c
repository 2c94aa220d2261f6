/* y = x W^T + b with int8 weights. */

/* Rows of x become 16-bit integers with a step each, nearly all of them of 8 bits; products are then summed in 32-bit
 * integers, exactly, so no order of summation shows in the result. The caller picks `levels` so that K products cannot
 * overflow. */

/* max |x| / levels, and its inverse. A row that is all but zero gets 0 and 0, one that is not finite NaN and 0. */
static float row_step(const element *x, int64_t K, float levels, float *inverse) {
    vec greatest = splat(0), not_finite = splat(0);
    for (int64_t k = 0; k < K; k += LANES) {
        vec value = K - k < LANES ? load_part(x + k, K - k) : load(x + k);
        vec size = (vec)((ivec)value & 0x7fffffff);
        greatest = choose(size > greatest, size, greatest);
        not_finite += value - value;
    }
    float most = 0;
    for (int i = 0; i < LANES; i++) most = greatest[i] > most ? greatest[i] : most;
    if (sum_lanes(not_finite) != 0 || most < 1e-30f) { /* x - x is 0, or NaN, which differs from 0 too */
        *inverse = 0;
        return sum_lanes(not_finite);
    }
    *inverse = levels / most;
    return most / levels;
}

#define QUANTIZE_ROW(TYPE)                                                                              \
    static float quantize_row_##TYPE(const element *x, TYPE *q, int64_t K, float levels) {              \
        float inverse, step = row_step(x, K, levels, &inverse);                                         \
        if (inverse == 0)                                                                               \
            memset(q, 0, K * sizeof(TYPE)); /* infinity times 0 would be NaN, and no integer */         \
        else                                                                                            \
            for (int64_t k = 0; k < K; k++) q[k] = (TYPE)(int32_t)__builtin_rintf(as_float(x + k) * inverse); \
        return step;                                                                                    \
    }
QUANTIZE_ROW(int8_t) /* of the KV cache */

/* Rounds to nearest, ties to even. */
INLINE ivec to_integers(vec x) {
#if LANES == 16
    return (ivec)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    return (ivec)_mm256_cvtps_epi32((__m256)x);
#else
    ivec integers;
    for (int i = 0; i < LANES; i++) integers[i] = (int32_t)__builtin_rintf(x[i]);
    return integers;
#endif
}

#define ROOT_MEAN_SQUARES 6.0 /* that fit into 8 bits */

/* As kernels.quantize.quantize_activations: the step, and its inverse. The sum of squares is of integers, so that it is the
 * same in any order. */
static float activation_step(const element *x, int64_t K, float levels, float *inverse) {
    float step = row_step(x, K, levels, inverse);
    if (*inverse == 0) return step;
    int64_t squares = 0;
    for (int64_t k = 0; k < K; k += LANES) {
        ivec integers = to_integers(load_up_to(x + k, K - k) * splat(*inverse));
        for (int i = 0; i < LANES; i++) squares += (int64_t)integers[i] * integers[i];
    }
    float ratio = (float)(sqrt((double)squares / (double)K) * (ROOT_MEAN_SQUARES / 127.0));
    if (ratio <= 1) return step;
    *inverse /= ratio;
    return step * ratio;
}

/* Shapes: x [M, K], w [N, K], scale [N], bias [N] or null, y [M, N]; room of paceline_int8_room int16.
 * Panels, from paceline_int8_pack, may be null; paceline_int8_panel_places says how large they are, 0 where there are none. */
#if LANES == 16 && defined(__AVX512VNNI__)
#include "int8_panels.c"
#else
#include "int8_rows.c"
#endif
