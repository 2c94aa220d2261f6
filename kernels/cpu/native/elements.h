/* Type of elements in memory, chosen at compile time: float, or bfloat16 with -DPACELINE_BFLOAT16. Arithmetic is in float. */

/* The first n elements of a vector, then zeros. */
INLINE vec load_floats_part(const float *p, int64_t n) {
#if LANES == 16
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    vec x = {0};
    memcpy(&x, p, n * sizeof(float));
    return x;
#endif
}
INLINE vec load_floats(const float *p) { return *(const vec_unaligned *)p; }
INLINE void store_floats(float *p, vec x) { *(vec_unaligned *)p = x; }

#if defined(PACELINE_BFLOAT16)

typedef uint16_t element;
typedef uint16_t evec __attribute__((vector_size(4 * LANES)));
typedef uint16_t evec_unaligned __attribute__((vector_size(4 * LANES), aligned(2)));

INLINE vec widen(hvec x) {
#if LANES == 16
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#elif defined(__AVX2__)
    return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)x), 16);
#else
    return (vec)(__builtin_convertvector(x, uvec) << 16);
#endif
}

/* Rounds to nearest, ties to even; a NaN stays a NaN. */
INLINE hvec narrow(vec x) {
#if LANES == 16 && defined(__AVX512BF16__)
    return (hvec)_mm512_cvtneps_pbh((__m512)x);
#else
    uvec bits = (uvec)x;
    bits += 0x7fff + (bits >> 16 & 1);
    bits = (uvec)choose(x != x, (vec)(uvec)ALL_LANES(0x7fc00000), (vec)bits);
    return __builtin_convertvector(bits >> 16, hvec);
#endif
}

INLINE vec rounded(vec x) { return widen(narrow(x)); }
INLINE vec load(const element *p) { return widen(*(const hvec_unaligned *)p); }
INLINE void store(element *p, vec x) { *(hvec_unaligned *)p = narrow(x); }
INLINE vec load_part(const element *p, int64_t n) {
    hvec x = {0};
    memcpy(&x, p, n * sizeof(element));
    return widen(x);
}
INLINE void store_part(element *p, vec x, int64_t n) {
    hvec narrowed = narrow(x);
    memcpy(p, &narrowed, n * sizeof(element));
}

/* The first (half 0) or second of the two bfloat16 in each 32 bits. */
INLINE vec half_of(uvec pairs, int half) {
    return (vec)(half ? pairs & (uvec)ALL_LANES(0xffff0000) : pairs << 16);
}

/* Products of elements as they lie in memory, summed in float. */
INLINE vec add_products(evec x, evec w, vec sum) {
#if LANES == 16 && defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
    sum = fma_lanes(half_of((uvec)x, 0), half_of((uvec)w, 0), sum);
    return fma_lanes(half_of((uvec)x, 1), half_of((uvec)w, 1), sum);
#endif
}

#else

typedef float element;
typedef vec evec;

INLINE vec rounded(vec x) { return x; }
INLINE vec load(const element *p) { return load_floats(p); }
INLINE void store(element *p, vec x) { store_floats(p, x); }
INLINE vec load_part(const element *p, int64_t n) { return load_floats_part(p, n); }
INLINE void store_part(element *p, vec x, int64_t n) { memcpy(p, &x, n * sizeof(element)); }
INLINE vec add_products(evec x, evec w, vec sum) { return fma_lanes(x, w, sum); }

#endif

INLINE void store_up_to(element *p, vec x, int64_t left) { left < LANES ? store_part(p, x, left) : store(p, x); }
INLINE vec load_up_to(const element *p, int64_t left) { return left < LANES ? load_part(p, left) : load(p); }

#define PLACE (4 / (int64_t)sizeof(element)) /* a place is 32 bits: a float, or two bfloat16 that are multiplied at once */

INLINE int32_t place_of(const element *p) {
    int32_t place;
    memcpy(&place, p, sizeof(place));
    return place;
}
/* Copies the value into every lane. */
INLINE evec splat_place(int32_t place) { return (evec)(ivec)ALL_LANES(place); }

/* Places from the same column of two rows, or, of floats, a column of the first. */
INLINE evec load_places(const element *first, const element *second, int64_t left) {
#if defined(PACELINE_BFLOAT16)
    return (evec)((uvec)load_up_to(first, left) >> 16 | (uvec)load_up_to(second, left));
#else
    (void)second;
    return load_up_to(first, left);
#endif
}

/* The first n of four outputs. */
INLINE void store_few(element *p, quad x, int n) {
#if defined(PACELINE_BFLOAT16) && LANES == 16 && defined(__AVX512BF16__)
    __m128bh narrowed = _mm_cvtneps_pbh((__m128)x);
#elif defined(PACELINE_BFLOAT16)
    vec all = splat(0);
    memcpy(&all, &x, sizeof(x));
    hvec narrowed = narrow(all);
#else
    quad narrowed = x;
#endif
    memcpy(p, &narrowed, n * sizeof(element));
}
INLINE float as_float(const element *p) {
#if defined(PACELINE_BFLOAT16)
    uint32_t bits = (uint32_t)*p << 16;
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
#else
    return *p;
#endif
}
