/* Fetching the weights of the next block while the present one is computed: else the first rows wait for memory, and the
 * others then for arithmetic. Blocks are taken from a common count, one early. */

INLINE int64_t take_block(int64_t *taken) { return __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED); }

/* What is read next, and how much of it to fetch into the second-level cache with each tile of the present work. */
typedef struct {
    const char *at, *end;
    int64_t share;
} Ahead;

/* Of the block of weights from `at` to `end`, in `tiles` shares. */
INLINE Ahead ahead_of(const void *at, const void *end, int64_t tiles) {
    Ahead ahead = {at, end, 0};
    if (tiles) ahead.share = (ahead.end - ahead.at) / tiles / 64 * 64 + 64;
    return ahead;
}

INLINE void fetch(Ahead *ahead) {
    const char *stop = ahead->end - ahead->at < ahead->share ? ahead->end : ahead->at + ahead->share;
    for (; ahead->at < stop; ahead->at += 64) __builtin_prefetch(ahead->at, 0, 2);
}
