// The products of gemm.cu where the operands are of different types, of weights in blocks and of fp8: both are rounded to bf16 on their way
// into shared memory (Numerics::Fast allows that; all of fp8 is exact in it, but for scales of blocks of 128 by 128, which are applied here), so that a weight is read as it is stored and no copy of it is made.
//
// As gemm.cu, but each thread loads 8 neighbouring k of the next step into registers, before the tensor cores work on this one, and
// puts them into the other of two stages behind it. `any` serves all types by a switch per 8 elements, the same way for every thread;
// the commonest formats have kernels of their own. x of fp8 meets `any` alone.
// Promised instructions: HMMA, LDSM.
// Traffic: w once for each 128 (64, 16) rows of x. Measured on an H200, 14336 x 4096 in Q4_K: m = 16 112 us, 128 189, 512 568: decoding and
// the wait for it between barriers bind it (torch's bf16 by bf16: 34 at m = 128, 85 at 512). f8e4m3 178, at m = 64 232, 128 246.
// Target: sm_80.
#include "gemm.cuh"
#include "eight.cuh"

template <class Weight> DEV U4 packed_x(i64 type, const u8* row, u32 k) {
    if (type == BF16) return *(const U4*)(row + k * 2);
    return packed(Weight::FP8_X ? float_eight(type, row, k) : plain_eight(type, row, k));
}

template <u32 BM, u32 WARPS_M, class Weight> DEV void gemm(const Args& p) {
    typedef Warps<BM, WARPS_M, Bf16> W;
    enum : u32 { A_CHUNKS = (BM * 4 + THREADS - 1) / THREADS, CHUNKS = A_CHUNKS + BN * 4 / THREADS };
    extern __shared__ __align__(128) u8 shared[];
    Tile t = tile_of<BM>(p, 2);
    if (t.rows.first == t.rows.end) return;

    // What each thread loads, of x and then of w: chunks of 8 elements.
    u32 chunk = threadIdx.x % 4, line = threadIdx.x / 4;
    const u8* from[CHUNKS];
    U4 next[CHUNKS];
#pragma unroll
    for (u32 c = 0; c < CHUNKS; c++) {
        u64 i = t.rows.first + line + c * 64;
        if (c >= A_CHUNKS) from[c] = weight_row(p, t, line + (c - A_CHUNKS) * 64, Weight::block(p), Weight::bytes(p));
        else if (i >= t.rows.end || line + c * 64 >= BM) from[c] = nullptr;
        else from[c] = p.x.data + (matrix_of_rows(p, p.x, t.rows.b) + (i64)i * p.x.stride[1]) * float_bytes(p.x.type);
    }
    auto load = [&](u32 step) {
        u32 k = step * 32 + chunk * 8;
#pragma unroll
        for (u32 c = 0; c < CHUNKS; c++) {
            next[c] = {};
            if (!from[c] || k >= p.k) continue;
            if (c < A_CHUNKS) {
                next[c] = packed_x<Weight>(p.x.type, from[c], k);
            } else {
                next[c] = Weight::halves(p.w.type, from[c], k);
                if (Weight::SCALED && p.w_scales == OF_BLOCKS) scale_packed(p, t.first_j + line + (c - A_CHUNKS) * 64, k, next[c]);
            }
        }
    };
    auto put = [&](u32 step) {
        u8* to = shared + step % 2 * W::STAGE;
#pragma unroll
        for (u32 c = 0; c < CHUNKS; c++) {
            u32 at = c < A_CHUNKS ? place(line + c * 64, chunk) : W::A_BYTES + place(line + (c - A_CHUNKS) * 64, chunk);
            if (BM >= 64 || c >= A_CHUNKS || line < BM) *(U4*)(to + at) = next[c];
        }
    };

    W warps = {};
    if (t.first_step < t.end_step) {
        load(t.first_step);
        put(t.first_step);
    }
    __syncthreads();
    for (u32 step = t.first_step; step < t.end_step; step++) {
        if (step + 1 < t.end_step) load(step + 1);
        warps.multiply(shared_address(shared) + step % 2 * W::STAGE);
        if (step + 1 < t.end_step) put(step + 1);
        __syncthreads();
    }
    warps.spread((float*)shared);
    __syncthreads();
    finish_tile<BM>(p, t, (const float*)shared);
}

#define ENTRY(name, blocks, ...)                                                                                                  \
    KERNEL void __launch_bounds__(THREADS, blocks) name##_128(const __grid_constant__ Args p) {                                           \
        gemm<128, 2, __VA_ARGS__>(p);                                                                                             \
    }                                                                                                                             \
    KERNEL void __launch_bounds__(THREADS, 2) name##_16(const __grid_constant__ Args p) {                                            \
        gemm<16, 1, __VA_ARGS__>(p);                                                                                              \
    }
ENTRY(any, 1, Any)
ENTRY(q4_0, 2, Only<Q4_0>)
ENTRY(q8_0, 2, Only<Q8_0>)
ENTRY(q4_k, 2, Only<Q4_K>)
ENTRY(q6_k, 2, Only<Q6_K>)
ENTRY(f8e4m3, 1, Fp8)
