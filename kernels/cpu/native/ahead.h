/* Prefetch of the next block's weights while the current block is computed. Without it the first rows of a block wait for
 * memory and the others for arithmetic. Threads take block numbers from a shared counter, one block early. */

INLINE int64_t take_block(int64_t *taken) { return __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED); }

/* The memory that is read next, and how much of it to prefetch into the second-level cache with each tile of current work. */
typedef struct {
    const char *at, *end;
    int64_t share;
} Ahead;

/* Block `next` of N rows of weights, `block` rows each, in `tiles` shares; empty after the last block. */
INLINE Ahead ahead_of(const void *weights, int64_t row_bytes, int64_t next, int64_t block, int64_t N, int64_t tiles) {
    int64_t n = next * block < N ? next * block : N, end = n + block < N ? n + block : N;
    Ahead ahead = {(const char *)weights + n * row_bytes, (const char *)weights + end * row_bytes, 0};
    if (tiles) ahead.share = (ahead.end - ahead.at) / tiles / 64 * 64 + 64;
    return ahead;
}

INLINE void fetch(Ahead *ahead) {
    const char *stop = ahead->end - ahead->at < ahead->share ? ahead->end : ahead->at + ahead->share;
    for (; ahead->at < stop; ahead->at += 64) __builtin_prefetch(ahead->at, 0, 2);
}
