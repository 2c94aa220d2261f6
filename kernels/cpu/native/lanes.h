/* Vectors of 16 lanes with AVX-512, of 8 elsewhere. */

#if defined(__x86_64__) && !(defined(__AVX2__) && defined(__FMA__))
#error "this processor has no AVX2 and FMA"
#endif

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__FMA__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define LANES 16
#else
#define LANES 8
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));
typedef float quad __attribute__((vector_size(16)));
typedef int32_t integer_quad __attribute__((vector_size(16)));
typedef float vec_unaligned __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t hvec_unaligned __attribute__((vector_size(2 * LANES), aligned(2)));

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* a b + c, fused. The compiler is told not to fuse on its own, since it would do so in some places and not in others. */
INLINE vec fma_lanes(vec a, vec b, vec c) {
#if LANES == 16
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < LANES; i++) c[i] = fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

#if LANES == 16
#define ALL_LANES(x) {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}
#else
#define ALL_LANES(x) {x, x, x, x, x, x, x, x}
#endif
INLINE vec splat(float x) { return (vec)ALL_LANES(x); }

/* Sums the lanes in one tree: halves, quarters, down to one. Lane indices are constants, so that vectors stay in registers. */
typedef float octet __attribute__((vector_size(32)));
typedef int32_t integer_octet __attribute__((vector_size(32)));
#define SUM_OCTET(NAME, TYPE, VECTOR)                                                            \
    INLINE TYPE NAME(VECTOR x) {                                                                 \
        typedef TYPE four __attribute__((vector_size(16)));                                      \
        four low = {x[0], x[1], x[2], x[3]}, high = {x[4], x[5], x[6], x[7]}, pairs = low + high; \
        four swapped = {pairs[2], pairs[3], pairs[0], pairs[1]};                                 \
        pairs += swapped;                                                                        \
        return pairs[0] + pairs[1];                                                              \
    }
SUM_OCTET(sum_octet, float, octet)
SUM_OCTET(sum_integer_octet, int32_t, integer_octet)

#if LANES == 16
INLINE octet fold(vec x) {
    return (octet)_mm512_castps512_ps256((__m512)x) + (octet)_mm512_extractf32x8_ps((__m512)x, 1);
}
INLINE integer_octet fold_integers(ivec x) {
    return (integer_octet)_mm512_castsi512_si256((__m512i)x) +
           (integer_octet)_mm512_extracti32x8_epi32((__m512i)x, 1);
}
#else
INLINE octet fold(vec x) { return x; }
INLINE integer_octet fold_integers(ivec x) { return x; }
#endif
INLINE float sum_lanes(vec x) { return sum_octet(fold(x)); }
INLINE int32_t sum_integers(ivec x) { return sum_integer_octet(fold_integers(x)); }

INLINE float greatest_lane(vec x) {
#if LANES == 16
    return _mm512_reduce_max_ps((__m512)x);
#else
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
#endif
}

/* The same tree for four vectors at once, for a third of the instructions. */
#define SUM_FOUR(NAME, TYPE, VECTOR, FOLD)                                                                     \
    INLINE TYPE NAME(VECTOR a, VECTOR b, VECTOR c, VECTOR d) {                                                 \
        const integer_octet low = {0, 1, 2, 3, 8, 9, 10, 11}, high = {4, 5, 6, 7, 12, 13, 14, 15};             \
        const integer_octet first = {0, 1, 8, 9, 4, 5, 12, 13}, second = {2, 3, 10, 11, 6, 7, 14, 15};         \
        __typeof__(FOLD(a)) e = FOLD(a), f = FOLD(b), g = FOLD(c), h = FOLD(d);                                \
        __typeof__(e) eg = __builtin_shuffle(e, g, low) + __builtin_shuffle(e, g, high);                       \
        __typeof__(e) fh = __builtin_shuffle(f, h, low) + __builtin_shuffle(f, h, high);                       \
        __typeof__(e) x = __builtin_shuffle(eg, fh, first) + __builtin_shuffle(eg, fh, second);                \
        TYPE even = {x[0], x[2], x[4], x[6]}, odd = {x[1], x[3], x[5], x[7]};                                  \
        return even + odd;                                                                                     \
    }
SUM_FOUR(sum_four_integers, integer_quad, ivec, fold_integers)

/* Keeps x in a register. GCC would load it again at every use, and loads are the bottleneck. */
#if defined(__x86_64__)
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#else
#define IN_REGISTER(x) (void)(x)
#endif

/* Hides from the compiler where `pointer` points, so that it loads the memory again. */
#define FROM_MEMORY(pointer) __asm__("" : "+r"(pointer))
