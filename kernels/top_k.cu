// The k largest of each row, in order. Elements become keys of order and index, so that no two are equal.
// - Rows of up to 256 and k up to 32 (a router's choice of experts): a warp has a row in registers and picks k times.
// - k up to 2048: a block has up to 4096 elements in registers. The k-th largest of its threads' best is found bit by bit, by counting; what
//   is at least that (a little more than k) is sorted in shared memory. Blocks of a long row leave their best to one more launch.
// - More: a thread counts what is better than its element, which is its place.
// Traffic: x once. Floor: one row of 131072 f32 is 0.5 MB, two launches of 2 us. Predicted for an H200: 40 of 131072 7 us, 8 of each of 512 rows of 4096 6 us.
// Measured there (a graph of launches): 11 to 14 and 9.5 us; 64 of 131072 24, 1024 47, 40 of each of 64 such rows in bf16 40; 8 of each of 512 rows of 64 3.8,
// of 4096 rows of 128 8.5. What a block waits for is its 20 counts and the sort. 4096 of 131072, by places, 3.4 ms: only what fits nothing else goes
// there. Lost: loads that depend on a branch by type, one after the other (16 us for the first); sorting a few by exchanges instead of by counting. Before, one
// block picked one after the other: 5.3 ms and 42 us.
#include "select.cuh"

struct Args {
    Tensor x, values, indices;
    Narrow narrow;
    u64 rows;
    u32 softmax;
};

DEV float value(const Args& p, i64 row, u64 j) {
    return load_float(p.x, row * p.x.stride[1] + j * p.x.stride[0]);
}
// The softmax over what was chosen, of which `largest` is the first: one of +inf or NaN spoils the row; of -inf: every element is hidden.
DEV float share(float v, float largest, float sum) {
    if (!(largest < INFINITE)) return NOT_A_NUMBER;
    return largest == -INFINITE ? 0.0f : expf(v - largest) / sum;
}

KERNEL void __launch_bounds__(256) top_k(const __grid_constant__ Args p) {
    __shared__ Best s;
    __shared__ float sums[8];
    u32 k = narrow(p.x, p.narrow, s);
    if (!p.narrow.last) return;
    i64 row = blockIdx.x, values = row * p.values.stride[1], indices = row * p.indices.stride[1];
    float largest = value(p, row, index_of(s.keys[0])), sum = 0.0f;
    if (p.softmax) {
#pragma unroll 1
        for (u32 c = threadIdx.x; c < k; c += THREADS) sum += expf(value(p, row, index_of(s.keys[c])) - largest);
        sum = block_sum(sum, sums);
    }
#pragma unroll 1
    for (u32 c = threadIdx.x; c < k; c += THREADS) {
        u32 j = index_of(s.keys[c]);
        float v = value(p, row, j);
        ((int*)p.indices.data)[indices + c * p.indices.stride[0]] = (int)j;
        store(p.values, values + c * p.values.stride[0], p.softmax ? share(v, largest, sum) : v);
    }
}

// A warp per row.
KERNEL void __launch_bounds__(256) top_k_short(const __grid_constant__ Args p) {
    u64 row = (u64)blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= p.rows) return;
    u32 lane = threadIdx.x % 32, k = (u32)p.narrow.k;
    u64 key[8], mine = 0;
    // All loads at once, of elements that are there.
    float v[8];
    i64 at[8];
#pragma unroll
    for (u32 e = 0; e < 8; e++) at[e] = row * p.x.stride[1] + (e * 32 + lane < p.narrow.n ? e * 32 + lane : 0) * p.x.stride[0];
    if (p.x.type == F32) {
#pragma unroll
        for (u32 e = 0; e < 8; e++) v[e] = ((const float*)p.x.data)[at[e]];
    } else {
        u16 raw[8];
#pragma unroll
        for (u32 e = 0; e < 8; e++) raw[e] = ((const u16*)p.x.data)[at[e]];
#pragma unroll
        for (u32 e = 0; e < 8; e++) v[e] = p.x.type == F16 ? f16_decode(raw[e]) : bf16_decode(raw[e]);
    }
#pragma unroll
    for (u32 e = 0; e < 8; e++) key[e] = e * 32 + lane < p.narrow.n ? key_of(v[e], e * 32 + lane) : 0;
#pragma unroll 1
    for (u32 c = 0; c < k; c++) {
        u64 best = 0;
#pragma unroll
        for (u32 e = 0; e < 8; e++) best = key[e] > best ? key[e] : best;
#pragma unroll
        for (u32 step = 16; step > 0; step /= 2) {
            u64 other = (u64)__shfl_xor_sync(0xffffffffu, (u32)(best >> 32), step) << 32 | __shfl_xor_sync(0xffffffffu, (u32)best, step);
            best = other > best ? other : best;
        }
#pragma unroll
        for (u32 e = 0; e < 8; e++) key[e] = key[e] == best ? 0 : key[e];
        if (c == lane) mine = best;
    }
    u32 j = index_of(mine);
    float chosen = lane < k ? value(p, row, j) : -INFINITE, largest = __shfl_sync(0xffffffffu, chosen, 0);
    float sum = p.softmax ? warp_sum(lane < k ? expf(chosen - largest) : 0.0f) : 0.0f;
    if (lane >= k) return;
    ((int*)p.indices.data)[row * p.indices.stride[1] + lane * p.indices.stride[0]] = (int)j;
    store(p.values, row * p.values.stride[1] + lane * p.values.stride[0], p.softmax ? share(chosen, largest, sum) : chosen);
}

// An element's place: how many are better. A block has 256 elements of a row.
KERNEL void __launch_bounds__(256) top_k_places(const __grid_constant__ Args p) {
    __shared__ u64 tile[1024];
    u64 n = p.narrow.n, row = blockIdx.x / (u32)p.narrow.parts, mine = blockIdx.x % (u32)p.narrow.parts * 256ull + threadIdx.x;
    u64 key = mine < n ? key_of(value(p, row, mine), mine) : 0;
    u64 place = 0;
#pragma unroll 1
    for (u64 first = 0; first < n; first += 1024) {
        __syncthreads();
#pragma unroll
        for (u32 i = threadIdx.x; i < 1024; i += 256) tile[i] = first + i < n ? key_of(value(p, row, first + i), first + i) : 0;
        __syncthreads();
        u32 better = 0;
#pragma unroll 8
        for (u32 i = 0; i < 1024; i++) better += tile[i] > key;
        place += better;
    }
    if (mine >= n || place >= p.narrow.k) return;
    ((int*)p.indices.data)[row * p.indices.stride[1] + place * p.indices.stride[0]] = (int)mine;
    if (!p.softmax) store(p.values, row * p.values.stride[1] + place * p.values.stride[0], value(p, row, mine));
}

// Their softmax, behind `top_k_places`: a block per row.
KERNEL void __launch_bounds__(256) top_k_shares(const __grid_constant__ Args p) {
    __shared__ float sums[8];
    i64 row = blockIdx.x, indices = row * p.indices.stride[1];
    auto chosen = [&](u64 c) { return value(p, row, load_index(p.indices, indices + c * p.indices.stride[0])); };
    float largest = chosen(0), sum = 0.0f;
#pragma unroll 1
    for (u64 c = threadIdx.x; c < p.narrow.k; c += 256) sum += expf(chosen(c) - largest);
    sum = block_sum(sum, sums);
#pragma unroll 1
    for (u64 c = threadIdx.x; c < p.narrow.k; c += 256) {
        store(p.values, row * p.values.stride[1] + c * p.values.stride[0], share(chosen(c), largest, sum));
    }
}
