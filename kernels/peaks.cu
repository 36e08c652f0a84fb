// A device's own limits, which fractions of the peak refer to: multiply-adds that wait for nothing, and reads that are used for nothing.
// `steps` is chosen by the host so that a launch takes milliseconds.
// Promised instructions: FFMA, LDG.
#include "peaks.cuh"

// 32 multiply-adds a step and thread, of 16 independent sums.
KERNEL void __launch_bounds__(256) f32(const __grid_constant__ Args p) {
    float sums[16], factor = 1.0f - (float)threadIdx.x * 1e-6f, term = (float)p.count * 1e-20f;
#pragma unroll
    for (int i = 0; i < 16; i++) sums[i] = (float)i;
#pragma unroll 1
    for (u64 step = 0; step < p.steps; step++) {
#pragma unroll
        for (int i = 0; i < 32; i++) sums[i % 16] = fmaf(sums[i % 16], factor, term);
    }
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i++) all += sums[i];
    if (all == 0.123f) *p.sink = 1;
}

// `steps` is 1.
KERNEL void __launch_bounds__(512) read(const __grid_constant__ Args p) {
    u64 stride = (u64)gridDim.x * 512;
    u32 all = 0;
#pragma unroll 1
    for (u64 i = (u64)blockIdx.x * 512 + threadIdx.x; i < p.count; i += 8 * stride) {
        U4 v[8];
#pragma unroll
        for (int u = 0; u < 8; u++) v[u] = i + u * stride < p.count ? p.data[i + u * stride] : U4{0, 0, 0, 0};
#pragma unroll
        for (int u = 0; u < 8; u++) all |= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
    }
    if (all == 0x12345678u) *p.sink = 1;
}
