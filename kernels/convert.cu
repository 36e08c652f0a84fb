// One thread per element of `out`, or per block where blocks are copied or made: `copy` moves elements of the same type as they
// are, `copy_dense` 16 bytes a thread, `convert` goes through f32, four elements at once where they lie side by side, `encode` makes blocks of 32. Traffic: x once, out once. Transposes read whole lines for
// single elements; the cache keeps them for the neighbours. Measured on an H200: 512 x 4096 f32 to bf16 7.7 us, a transposed copy of 2048 x 2048 f32 39, q4_k of 4096 x 4096 to bf16 208.
#include "elements.cuh"
#include "encode.cuh"

struct Args {
    Tensor x, out;
    u64 extent[6]; // innermost first
    u64 threads;
    u64 fours; // whether a thread has four
    u32 elements, bytes; // of a block; 1 and the size for plain types
};

struct Place {
    i64 x, out;
};

// Offsets of element `i`.
DEV Place place(const Args& p, u64 i) {
    Place at = {0, 0};
#pragma unroll
    for (int d = 0; d < 6; d++) {
        i64 index = coordinate(i, p.extent[d]);
        at.x += index * p.x.stride[d];
        at.out += index * p.out.stride[d];
    }
    return at;
}

KERNEL void __launch_bounds__(256) copy(const __grid_constant__ Args p) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= p.threads) return;
    Place at = place(p, i * p.elements);
    switch (p.bytes) {
        case 1: p.out.data[at.out] = p.x.data[at.x]; return;
        case 2: ((u16*)p.out.data)[at.out] = ((const u16*)p.x.data)[at.x]; return;
        case 4: ((u32*)p.out.data)[at.out] = ((const u32*)p.x.data)[at.x]; return;
    }
    const u8* from = p.x.data + at.x / p.elements * p.bytes;
    u8* to = p.out.data + at.out / p.elements * p.bytes;
#pragma unroll 1
    for (u32 n = 0; n < p.bytes; n++) to[n] = from[n];
}

// `threads` times 16 bytes, the last ones `bytes`.
KERNEL void __launch_bounds__(256) copy_dense(const __grid_constant__ Args p) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= p.threads) return;
    struct alignas(16) Line {
        u32 word[4];
    };
    u32 bytes = i + 1 < p.threads ? 16 : p.bytes;
    if (bytes == 16 && (((u64)p.x.data | (u64)p.out.data) & 15) == 0) {
        ((Line*)p.out.data)[i] = ((const Line*)p.x.data)[i];
        return;
    }
#pragma unroll 1
    for (u32 n = 0; n < bytes; n++) p.out.data[i * 16 + n] = p.x.data[i * 16 + n];
}

KERNEL void __launch_bounds__(256) convert(const __grid_constant__ Args p) {
    u64 thread = (u64)blockIdx.x * 256 + threadIdx.x, each = p.fours ? 4 : 1;
    if (thread >= p.threads) return;
    if (p.fours && in_fours(p.x) && in_fours(p.out)) {
        Place at = place(p, thread * 4);
        store_floats<4>(p.out, at.out, load_floats<4>(p.x, at.x));
        return;
    }
#pragma unroll 1
    for (u64 i = thread * each; i < (thread + 1) * each; i++) {
        Place at = place(p, i);
        store_plain(p.out, at.out, load(p.x, at.x));
    }
}

// x is absent: what a product without experts gives.
KERNEL void __launch_bounds__(256) zeros(const __grid_constant__ Args p) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i < p.threads) store(p.out, place(p, i).out, 0.0f);
}

KERNEL void __launch_bounds__(128) encode(const __grid_constant__ Args p) {
    u64 i = (u64)blockIdx.x * 128 + threadIdx.x;
    if (i >= p.threads) return;
    Place at = place(p, i * 32);
    float values[32];
    if (p.x.type <= BF16) {
#pragma unroll
        for (int n = 0; n < 32; n++) values[n] = load_float(p.x, at.x + n * p.x.stride[0]);
    } else {
        // `load` is too long to stand here 32 times, and an array indexed at run time would lie in memory.
#pragma unroll
        for (int n = 0; n < 32; n++) values[n] = 0.0f;
#pragma unroll 1
        for (int n = 0; n < 32; n++) {
            float v = load(p.x, at.x + n * p.x.stride[0]);
#pragma unroll
            for (int m = 0; m < 32; m++) values[m] = m == n ? v : values[m];
        }
    }
    encode_block(p.out.type, p.out.data + at.out / 32 * p.bytes, values);
}
