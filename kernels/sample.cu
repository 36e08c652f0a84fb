// One index per row, a block per row. The greedy choice is one pass. A draw needs no sort: the element where a cumulative count or
// probability crosses a limit is found by its rank's bytes, from the highest, with a histogram of 256 buckets for each (four passes
// from cache for top_k, top_p and the draw each). Probabilities are whole numbers, relative to the largest one's 2^52 / n: their sums
// are exact in any order, so a draw is reproducible. Measured on an H200: one row of 131072 logits, top 40, 6.6 ms: the work of one block.
#include "types.cuh"
#include "block.cuh"

struct Args {
    Tensor logits, seed, out;
    u64 n, top_k;           // top_k: 0 keeps all
    float temperature, one; // one: the weight of the largest logit
    float top_p;
};

// Where a cumulative weight crosses a limit: the `rank`-th (from 0) of the elements of this order; `until` includes it.
struct Crossing {
    u32 order;
    u64 rank, until;
};
struct Shared {
    Pick picks[8];
    u64 histogram[256], warps[8];
    u64 bucket, before;
    u32 found[8];
};

DEV float logit(const Args& p, i64 row, u64 j) {
    return load_float(p.logits, row * p.logits.stride[1] + j * p.logits.stride[0]);
}
DEV u64 weight(const Args& p, float x, float largest) {
    return __float2ull_rn(expf((x - largest) / p.temperature) * p.one);
}
DEV float unordered(u32 order) {
    return __uint_as_float(order >> 31 ? order ^ 0x80000000u : ~order);
}

// The first element in descending order at which the cumulative weight (or, for `count`, number) exceeds `limit`.
DEV Crossing cross(const Args& p, i64 row, float largest, bool count, u64 limit, Shared& s) {
    u32 prefix = 0, mask = 0;
    u64 before = 0;
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        s.histogram[threadIdx.x] = 0;
        __syncthreads();
#pragma unroll 1
        for (u64 j = threadIdx.x; j < p.n; j += 256) {
            float x = logit(p, row, j);
            u32 key = order(x);
            if ((key & mask) == prefix) atomicAdd(&s.histogram[(key >> shift) & 255], count ? 1 : weight(p, x, largest));
        }
        __syncthreads();
        // An inclusive scan from the largest bucket down.
        u64 mine = s.histogram[255 - threadIdx.x], sum = mine;
#pragma unroll
        for (u32 step = 1; step < 32; step *= 2) {
            u32 low = __shfl_up_sync(0xffffffffu, (u32)sum, step), high = __shfl_up_sync(0xffffffffu, (u32)(sum >> 32), step);
            if (threadIdx.x % 32 >= step) sum += (u64)high << 32 | low;
        }
        if (threadIdx.x % 32 == 31) s.warps[threadIdx.x / 32] = sum;
        __syncthreads();
        for (u32 w = 0; w < threadIdx.x / 32; w++) sum += s.warps[w];
        sum += before;
        if (sum > limit && sum - mine <= limit) {
            s.bucket = 255 - threadIdx.x;
            s.before = sum - mine;
        }
        __syncthreads();
        prefix |= (u32)s.bucket << shift;
        mask |= 255u << shift;
        before = s.before;
        __syncthreads();
    }
    u64 each = count ? 1 : weight(p, unordered(prefix), largest), rank = (limit - before) / each;
    return Crossing{prefix, rank, before + (rank + 1) * each};
}

KERNEL void __launch_bounds__(256, 4) sample(const __grid_constant__ Args p) {
    __shared__ Shared s;
    i64 row = blockIdx.x;
    int* out = (int*)p.out.data + row * p.out.stride[0];
    Pick best = NO_PICK;
#pragma unroll 1
    for (u64 j = threadIdx.x; j < p.n; j += 256) best = better(best, Pick{order(logit(p, row, j)), (u32)j});
    best = block_pick(best, s.picks);
    float largest = best.index == NO_PICK.index ? NOT_A_NUMBER : logit(p, row, best.index);
    if (p.temperature == 0.0f || !(fabsf(largest) < INFINITE)) {
        if (threadIdx.x == 0) *out = (int)best.index; // NO_PICK's is -1
        return;
    }
    // All that top_k keeps.
    u64 total = ~0ull;
    bool cut = p.top_k > 0 && p.top_k < p.n;
    Crossing last = {0, 0, 0};
    if (cut) last = cross(p, row, largest, true, p.top_k - 1, s);
    u64 sum = 0;
#pragma unroll 1
    for (u64 j = threadIdx.x; j < p.n; j += 256) {
        float x = logit(p, row, j);
        if (order(x) > last.order) sum += weight(p, x, largest);
    }
    s.histogram[threadIdx.x] = sum;
    __syncthreads();
    total = cut ? (last.rank + 1) * weight(p, unordered(last.order), largest) : 0;
    for (u32 i = 0; i < 256; i++) total += s.histogram[i];
    __syncthreads();
    // The shortest prefix that reaches top_p, at least one element.
    if (p.top_p < 1.0f) {
        u64 share = __float2ull_rn(p.top_p * 4294967296.0f);
        u64 mass = (total >> 32) * share + ((total & 0xffffffffu) * share >> 32);
        total = cross(p, row, largest, false, mass > 0 ? mass - 1 : 0, s).until;
    }
    u64 z = ((u64)(u32)load_index(p.seed, 0) | (u64)(u32)load_index(p.seed, p.seed.stride[0]) << 32);
    z += (u64)(row + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    z = (z ^ z >> 31) >> 40;
    Crossing drawn = cross(p, row, largest, false, (total >> 24) * z + ((total & 0xffffffu) * z >> 24), s);
    // The index of the drawn one among its equals.
    u64 before = 0;
#pragma unroll 1
    for (u64 j = 0; j < p.n; j += 256) {
        u64 mine = j + threadIdx.x;
        bool equal = mine < p.n && order(logit(p, row, mine)) == drawn.order;
        u32 found = __ballot_sync(0xffffffffu, equal);
        if (threadIdx.x % 32 == 0) s.found[threadIdx.x / 32] = found;
        __syncthreads();
        u64 here = before + __popc(found & ((1u << threadIdx.x % 32) - 1));
        for (u32 w = 0; w < 8; w++) {
            u32 number = __popc(s.found[w]);
            if (w < threadIdx.x / 32) here += number;
            before += number;
        }
        if (equal && here == drawn.rank) *out = (int)mine;
        __syncthreads();
        if (before > drawn.rank) break;
    }
}
