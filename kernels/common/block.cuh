// Reductions over a block of 256 threads, in the same order every time.
#pragma once
#define INFINITE __uint_as_float(0x7f800000u)
#define NOT_A_NUMBER __uint_as_float(0x7fc00000u)

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
