// The best of many elements, as sorted keys: a block of 256 threads has 16 elements of each thread.
#pragma once
#include "sort.cuh"
#include "block.cuh"

#define OURS 16
#define HELD (THREADS * OURS) // elements of a block
#define MOST 2048             // keys that it keeps
#define FEW (MOST / OURS)     // of so many threads' elements all are kept

// A long row goes through several launches: each block of one leaves the best `k` of its elements as keys, which are the elements of the next, until one
// block has all of a row.
struct Narrow {
    u64* lists;                    // between launches
    u64 from, to;                  // where in them keys are read, beyond the first launch, and written, before the last
    u64 n, k, chunk, parts;        // elements of a row; how many are kept; elements and number of a row's blocks
    u32 first, last;
};
struct Best {
    u64 keys[MOST];
    u32 counts[2][8], count;
};

// The larger the better, and never 0: that is no element.
DEV u64 key_of(float x, u64 index) {
    return (u64)order(x) << 32 | ~(u32)index;
}
DEV u32 index_of(u64 key) {
    return ~(u32)key;
}

// A number that `k` to `most` of the block's keys reach; 0 where fewer than k are not 0. Keys differ, so that there is one for any k.
template <int N> DEV u64 reached(const u64 (&key)[N], u32 k, u32 most, Best& s) {
    u64 least = 0;
#pragma unroll 1
    for (int bit = 63; bit >= 0; bit--) {
        u64 trial = least | 1ull << bit;
        u32 found = 0, *counts = s.counts[bit & 1];
#pragma unroll
        for (int e = 0; e < N; e++) found += __popc(__ballot_sync(0xffffffffu, key[e] >= trial));
        if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = found;
        __syncthreads();
        u32 all = 0;
#pragma unroll
        for (u32 w = 0; w < 8; w++) all += counts[w];
        if (all >= k) least = trial;
        if (all >= k && all <= most) break;
    }
    return least;
}

// What a thread has of its block's part, from `first` to `end`: keys, and 0 beyond. All loads are under way at once, of elements that are there.
DEV void keys_of(u64 (&key)[OURS], const Tensor& x, const Narrow& p, u64 row, u64 first, u64 end) {
    u32 place = threadIdx.x * 4;
    if (!p.first) {
        const u64* from = p.lists + p.from + row * p.n;
#pragma unroll
        for (u32 e = 0; e < OURS; e++) {
            u64 j = first + e / 4 * (THREADS * 4) + place + e % 4;
            key[e] = from[j < end ? j : first];
        }
#pragma unroll
        for (u32 e = 0; e < OURS; e++) key[e] = first + e / 4 * (THREADS * 4) + place + e % 4 < end ? key[e] : 0;
        return;
    }
    Floats<4> v[OURS / 4];
    if (whole_fours(x) && (end - first) % 4 == 0) {
        i64 at[OURS / 4];
#pragma unroll
        for (u32 q = 0; q < OURS / 4; q++) {
            u64 j = first + q * (THREADS * 4) + place;
            at[q] = row * x.stride[1] + (j < end ? j : first);
        }
        if (x.type == F32) {
#pragma unroll
            for (u32 q = 0; q < OURS / 4; q++) v[q] = *(const Floats<4>*)((const float*)x.data + at[q]);
        } else {
            struct alignas(8) Pairs {
                u32 a, b;
            } raw[OURS / 4];
#pragma unroll
            for (u32 q = 0; q < OURS / 4; q++) raw[q] = *(const Pairs*)((const u16*)x.data + at[q]);
#pragma unroll
            for (u32 q = 0; q < OURS / 4; q++) {
#pragma unroll
                for (u32 u = 0; u < 4; u++) {
                    u16 h = (u16)((u < 2 ? raw[q].a : raw[q].b) >> u % 2 * 16);
                    v[q].x[u] = x.type == F16 ? f16_decode(h) : bf16_decode(h);
                }
            }
        }
    } else {
#pragma unroll
        for (u32 q = 0; q < OURS / 4; q++) v[q] = four_of(x, row, first + q * (THREADS * 4) + place, end, false);
    }
#pragma unroll
    for (u32 e = 0; e < OURS; e++) {
        u64 j = first + e / 4 * (THREADS * 4) + place + e % 4;
        key[e] = j < end ? key_of(v[e / 4].x[e % 4], j) : 0;
    }
}

// The block's best k elements in `s.keys`, sorted if it is a row's last: how many there are. Where k is small, only the k threads with the best elements have
// candidates; elsewhere exactly k elements are found.
DEV u32 narrow(const Tensor& x, const Narrow& p, Best& s) {
    u64 row = blockIdx.x / (u32)p.parts, part = blockIdx.x % (u32)p.parts, first = part * p.chunk;
    u64 end = first + p.chunk < p.n ? first + p.chunk : p.n;
    u64 key[OURS], top[1] = {0};
    if (threadIdx.x == 0) s.count = 0;
    if (first < end) keys_of(key, x, p, row, first, end);
    else {
#pragma unroll
        for (u32 e = 0; e < OURS; e++) key[e] = 0;
    }
#pragma unroll
    for (u32 e = 0; e < OURS; e++) top[0] = key[e] > top[0] ? key[e] : top[0];
    u32 k = (u32)p.k, more = k + k / 2 + 8;
    u64 least = k <= FEW ? reached(top, k, more < FEW ? more : FEW, s) : reached(key, k, k, s);
#pragma unroll
    for (u32 e = 0; e < OURS; e++) {
        if (key[e] != 0 && key[e] >= least) s.keys[atomicAdd(&s.count, 1)] = key[e];
    }
    __syncthreads();
    u32 found = s.count;
    if (found <= FEW) sort_few(s.keys, found);
    else if (p.last || found > k) sort(s.keys, found);
    u32 kept = found < k ? found : k;
    if (!p.last) {
        for (u32 i = threadIdx.x; i < k; i += THREADS) p.lists[p.to + blockIdx.x * p.k + i] = i < kept ? s.keys[i] : 0;
    }
    return kept;
}
