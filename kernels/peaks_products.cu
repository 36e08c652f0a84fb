// What tensor cores can do at most: products that wait for nothing. See peaks.cu.
// Promised instructions: HMMA, IMMA.
// Target: sm_80.
#include "peaks.cuh"
#include "mma.cuh"

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
