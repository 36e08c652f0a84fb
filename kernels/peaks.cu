// A device's own limits, which fractions of the peak refer to: multiply-adds and products on tensor cores that wait for nothing, and
// reads that are used for nothing. `steps` is chosen by the host so that a launch takes milliseconds.
// Promised instructions: FFMA, HMMA, IMMA, LDG.
#include "types.cuh"
#include "mma.cuh"

struct alignas(16) U4 {
    u32 x, y, z, w;
};

struct Args {
    const U4* data; // what `read` reads
    u64 count;      // of it
    u64 steps;
    u32* sink; // never written: the numbers are not what it waits for
};

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

// 8 products a step and warp.
template <class Type> DEV void products(const Args& p, u32 bits) {
    typename Type::Sum sums[8][4] = {};
    u32 a[4], b[2];
#pragma unroll
    for (u32 i = 0; i < 4; i++) a[i] = bits ^ (threadIdx.x * 0x01030507u + i) % 0x80u * 0x00010001u;
    b[0] = a[1], b[1] = a[2] ^ a[0];
#pragma unroll 1
    for (u64 step = 0; step < p.steps; step++) {
#pragma unroll
        for (int i = 0; i < 8; i++) Type::mma(sums[i], a, b[0], b[1]);
    }
    typename Type::Sum all = 0;
#pragma unroll
    for (int i = 0; i < 32; i++) all += sums[i / 4][i % 4];
    if (all == (typename Type::Sum)1234567) *p.sink = 1;
}
KERNEL void __launch_bounds__(256) half(const __grid_constant__ Args p) {
    products<Bf16>(p, 0x3f803f80u);
}
KERNEL void __launch_bounds__(256) int8(const __grid_constant__ Args p) {
    products<Signed>(p, 0x11223344u);
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
