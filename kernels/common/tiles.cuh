// The kernels of gemm.cu, gemm_fp8.cu and gemm_stream.cu: operands of one type, copied to shared memory as they are.
#pragma once
#include "gemm.cuh"

// A tile's sums, to rows in shared memory.
template <u32 BM, u32 WARPS_M, class Type> DEV void multiply_tile(const Args& p, const Tile& t, u8* shared) {
    typedef Warps<BM, WARPS_M, Type> W;
    enum : u32 { A_CHUNKS = (BM * 4 + THREADS - 1) / THREADS, B_CHUNKS = BN * 4 / THREADS };
    u32 base = shared_address(shared);

    // What each thread copies: chunks of 16 bytes.
    u32 chunk = threadIdx.x % 4, line = threadIdx.x / 4, k_bytes = (u32)(p.k * Type::ELEM);
    const u8 *a[A_CHUNKS], *b[B_CHUNKS];
#pragma unroll
    for (u32 c = 0; c < A_CHUNKS; c++) {
        u64 i = t.rows.first + line + c * 64;
        bool inside = i < t.rows.end && line + c * 64 < BM;
        a[c] = inside ? p.x.data + (matrix_of_rows(p, p.x, t.rows.b) + (i64)i * p.x.stride[1]) * Type::ELEM : nullptr;
    }
#pragma unroll
    for (u32 c = 0; c < B_CHUNKS; c++) b[c] = weight_row(p, t, line + c * 64, 1, Type::ELEM);

    auto copy = [&](u32 step) {
        u32 to = base + step % STAGES * W::STAGE, k = step * BK + chunk * 16;
#pragma unroll
        for (u32 c = 0; c < A_CHUNKS; c++) {
            bool in = a[c] && k < k_bytes;
            if (BM >= 64 || line < BM) copy_async(to + place(line + c * 64, chunk), in ? a[c] + k : p.x.data, in);
        }
#pragma unroll
        for (u32 c = 0; c < B_CHUNKS; c++) {
            bool in = b[c] && k < k_bytes;
            copy_async(to + W::A_BYTES + place(line + c * 64, chunk), in ? b[c] + k : p.w.data, in);
        }
    };

    W warps = {};
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; s++) {
        if (t.first_step + s < t.end_step) copy(t.first_step + s);
        copies_end();
    }
    for (u32 step = t.first_step; step < t.end_step; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < t.end_step) copy(step + STAGES - 1);
        copies_end();
        float scale = 1.0f;
        if (Type::SHORT && p.w_scales == OF_BLOCKS) scale = block_scale(p, t.first_j, step * BK);
        warps.multiply(base + step % STAGES * W::STAGE, scale);
    }
    copies_wait<0>();
    __syncthreads();
    warps.spread((typename Type::Sum*)shared);
    __syncthreads();
}

template <u32 BM, u32 WARPS_M, class Type> DEV void gemm(const Args& p) {
    extern __shared__ __align__(128) u8 shared[];
    Tile t = tile_of<BM>(p, Type::ELEM);
    if (t.rows.first == t.rows.end) return;
    multiply_tile<BM, WARPS_M, Type>(p, t, shared);
    finish_tile<BM>(p, t, (const typename Type::Sum*)shared);
}

#define ENTRY(name, Type, blocks)                                                                                                 \
    KERNEL void __launch_bounds__(THREADS, blocks) name##_128(const __grid_constant__ Args p) {                                   \
        gemm<128, 2, Type>(p);                                                                                                    \
    }                                                                                                                             \
    KERNEL void __launch_bounds__(THREADS, blocks) name##_64(const __grid_constant__ Args p) {                                    \
        gemm<64, 2, Type>(p);                                                                                                     \
    }                                                                                                                             \
    KERNEL void __launch_bounds__(THREADS, 2) name##_16(const __grid_constant__ Args p) {                                         \
        gemm<16, 1, Type>(p);                                                                                                     \
    }
