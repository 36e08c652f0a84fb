// What Hopper's tensor cores can do at most with bf16: products of two warpgroups that wait for no copies. See peaks.cu. The numbers are
// drawn: of zeros the device does more, as it takes less power.
// Promised instructions: HGMMA.
#include "peaks.cuh"
#include "hopper.cuh"

#define EIGHT(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

// Adds 64 x 128 products of 16 elements.
DEV void multiply(float (&d)[64], u64 a, u64 b) {
    asm volatile("{.reg .pred adds; setp.eq.u32 adds, 0, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
                 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,"
                 "%62,%63}, %64, %65, adds, 1, 1, 0, 0;}"
                 : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56)
                 : "l"(a), "l"(b));
}

// Nothing that reads sums goes before the wait for them.
DEV void settled(float (&d)[64]) {
    asm volatile("" : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56));
}

// 4 products a step and warpgroup.
KERNEL void __launch_bounds__(256) half(const __grid_constant__ Args p) {
    enum : u32 { A = 64 * 128, B = 128 * 128 };
    __shared__ __align__(1024) u8 tiles[2 * A + B];
    u32 word = threadIdx.x * 0x9e3779b9u + 1;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < sizeof(tiles) / 4; i += 256) {
        word = word * 1664525u + 1013904223u;
        ((u32*)tiles)[i] = (word & 0x807f807fu) | 0x3f003f00u; // of either sign, between a half and 1
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    u32 b = (u32)__cvta_generic_to_shared(tiles) + 2 * A, a = b - 2 * A + threadIdx.x / 128 * A;
    float sums[64] = {};
#pragma unroll 1
    for (u64 step = 0; step < p.steps; step++) {
        products_begin();
#pragma unroll
        for (u32 k = 0; k < 4; k++) multiply(sums, descriptor(a + k * 32), descriptor(b + k * 32));
        products_end();
        products_wait<1>();
    }
    products_wait<0>();
    settled(sums);
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < 64; i++) all += sums[i];
    if (all == 0.123f) *p.sink = 1;
}
