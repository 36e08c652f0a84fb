// Rows of a cache of keys or values, counted through its pages, and who writes them.
#pragma once

struct CacheArgs {
    Tensor cache, slots;
    u64 tokens, rows, page; // a contiguous cache is one page
};

// First element of a row.
DEV i64 cache_row(const CacheArgs& p, i64 slot) {
    return (u32)slot / (u32)p.page * p.cache.stride[3] + (u32)slot % (u32)p.page * p.cache.stride[2];
}
// The slot that the whole block's token goes to, or -1: outside the cache, or a later token names it too. The block looks
// through the later slots together.
DEV i64 kept_slot(const CacheArgs& p, u64 token, u32* shared) {
    int slot = load_index(p.slots, token * p.slots.stride[0]);
    bool later = false;
#pragma unroll 1
    for (u64 t = token + 1 + threadIdx.x; t < p.tokens; t += 256) {
        later = later || load_index(p.slots, t * p.slots.stride[0]) == slot;
    }
    bool kept = !block_any(later, shared) && slot >= 0 && (u64)slot < p.rows;
    return kept ? (i64)slot : -1;
}
