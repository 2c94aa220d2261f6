/* Vectors of 8 lanes. */

#if defined(__x86_64__) && !(defined(__AVX2__) && defined(__FMA__))
#error "this processor has no AVX2 and FMA"
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__FMA__)
#include <immintrin.h>
#endif

#define LANES 8
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(32)));
typedef int32_t ivec __attribute__((vector_size(32)));
typedef float vec_unaligned __attribute__((vector_size(32), aligned(4)));

INLINE vec load(const float *p) { return *(const vec_unaligned *)p; }
INLINE void store(float *p, vec x) { *(vec_unaligned *)p = x; }

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* The first n < 8 elements, zeros behind them. */
INLINE vec load_part(const float *p, int64_t n) {
    vec x = {0};
    memcpy(&x, p, n * sizeof(float));
    return x;
}

/* a b + c. Always by this name: the compiler is told not to fuse by itself, since it would here and not there. */
INLINE vec fma_lanes(vec a, vec b, vec c) {
#if defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < LANES; i++) c[i] = fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

INLINE vec splat(float x) { return (vec){x, x, x, x, x, x, x, x}; }

/* One tree: halves, quarters, two. Lanes by constant index, or an array of vectors lives in memory. */
#define SUM_LANES(NAME, TYPE, VECTOR)                                             \
    INLINE TYPE NAME(VECTOR x) {                                                  \
        typedef TYPE half __attribute__((vector_size(16)));                       \
        half low = {x[0], x[1], x[2], x[3]}, high = {x[4], x[5], x[6], x[7]};     \
        half pairs = low + high;                                                  \
        half swapped = {pairs[2], pairs[3], pairs[0], pairs[1]};                  \
        pairs += swapped;                                                         \
        return pairs[0] + pairs[1];                                               \
    }
SUM_LANES(sum_lanes, float, vec)
SUM_LANES(sum_integers, int32_t, ivec)

/* The same tree for eight vectors at once: the sum of x[i] in lane i, for a third of the instructions. */
INLINE vec sum_eight(const vec *x) {
    vec halves[4], quarters[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        halves[i] = __builtin_shuffle(x[i], x[i + 4], (ivec){0, 1, 2, 3, 8, 9, 10, 11}) +
                    __builtin_shuffle(x[i], x[i + 4], (ivec){4, 5, 6, 7, 12, 13, 14, 15});
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        quarters[i] = __builtin_shuffle(halves[2 * i], halves[2 * i + 1], (ivec){0, 1, 8, 9, 4, 5, 12, 13}) +
                      __builtin_shuffle(halves[2 * i], halves[2 * i + 1], (ivec){2, 3, 10, 11, 6, 7, 14, 15});
    return __builtin_shuffle(quarters[0], quarters[1], (ivec){0, 2, 8, 10, 4, 6, 12, 14}) +
           __builtin_shuffle(quarters[0], quarters[1], (ivec){1, 3, 9, 11, 5, 7, 13, 15});
}

/* Hold x in a register: GCC would rather load it again as the operand of every use, and loads are what is scarce. */
#if defined(__x86_64__)
#define IN_REGISTER(x) __asm__("" : "+x"(x))
#else
#define IN_REGISTER(x) (void)(x)
#endif
