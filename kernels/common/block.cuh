// Reductions over a block of 256 threads, in the same order every time.
#pragma once

// NaN where either is.
DEV float nan_max(float a, float b) {
    return a != a ? a : b != b ? b : fmaxf(a, b);
}
DEV float block_sum(float v, float* shared) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) total += shared[i];
    __syncthreads();
    return total;
}
DEV float block_max(float v, float* shared) {
    for (int step = 16; step > 0; step /= 2) v = nan_max(v, __shfl_xor_sync(0xffffffffu, v, step));
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    float largest = shared[0];
#pragma unroll
    for (int i = 1; i < 8; i++) largest = nan_max(largest, shared[i]);
    __syncthreads();
    return largest;
}
// An element's rank, which is total (NaN above everything, both zeros equal), and its index.
struct Pick {
    u32 order, index;
};
#define NO_PICK (Pick{0u, 0xffffffffu})

DEV u32 order(float x) {
    u32 bits = __float_as_uint(x);
    if (is_nan(x)) return 0xffffffffu;
    if ((bits & 0x7fffffffu) == 0) return 0x80000000u;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
// The larger, the first of equals.
DEV Pick better(Pick a, Pick b) {
    return b.order > a.order || (b.order == a.order && b.index < a.index) ? b : a;
}
DEV Pick warp_pick(Pick v) {
    for (int step = 16; step > 0; step /= 2) {
        Pick other;
        other.order = __shfl_xor_sync(0xffffffffu, v.order, step);
        other.index = __shfl_xor_sync(0xffffffffu, v.index, step);
        v = better(v, other);
    }
    return v;
}
DEV Pick block_pick(Pick v, Pick* shared) {
    v = warp_pick(v);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
    __syncthreads();
    Pick best = shared[0];
#pragma unroll
    for (int i = 1; i < 8; i++) best = better(best, shared[i]);
    __syncthreads();
    return best;
}
// Whether any thread says so.
DEV bool block_any(bool v, u32* shared) {
    u32 warp = __ballot_sync(0xffffffffu, v);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = warp;
    __syncthreads();
    u32 any = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) any |= shared[i];
    __syncthreads();
    return any != 0;
}
