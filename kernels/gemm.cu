// The products of matmul.cu on tensor cores, of operands of one type whose rows of k are dense and begin at multiples of 16 bytes:
// bf16 and f16 summed in f32, f32 rounded to tf32 (where Numerics::Fast allows it), i8 summed in i32.
//
// A block of 8 warps computes BM x 128 outputs (BM: 128, 64 or 16), 64 bytes of k at a time. Four stages of tiles lie in shared
// memory, in rows of 64 bytes whose four 16-byte chunks are permuted by the row, so that neither copies (cp.async) nor ldmatrix meet
// bank conflicts. All types take the same path: fragments are the same bytes, only the mma instruction differs.
// A gated pair is 64 columns of w beside the same 64 of up: no second accumulators. Sums pass through shared memory, permuted
// likewise, to an epilogue that stores 16 bytes a thread. Blocks that share x and w are neighbours (8 tiles down, then right), for L2.
// Where the outputs are few, `splits` blocks share k and leave partial sums, which `sum_splits` adds in a fixed order.
// Promised instructions: HMMA, IMMA, LDGSTS, LDSM.
// Traffic per block and k of 32 (bf16): 16 KB for 1 MFLOP: from L2 at 128 x 128, 64 flops a byte.
// Estimate: mma.sync is said to reach 75 % of wgmma's rate, so 4096 cubed in bf16 on an H200 about 500 TFLOP/s at most, 0.3 ms;
// on an A100 200 to 250 TFLOP/s. Run in the PTX interpreter and assembled; not measured on a GPU.
// Target: sm_80.
#include "gemm.cuh"

template <u32 BM, u32 WARPS_M, class Type> DEV void gemm(const Args& p) {
    typedef Warps<BM, WARPS_M, Type> W;
    enum : u32 { A_CHUNKS = (BM * 4 + THREADS - 1) / THREADS, B_CHUNKS = BN * 4 / THREADS };
    extern __shared__ __align__(128) u8 shared[];
    u32 base = shared_address(shared);
    Tile t = tile_of<BM>(p, Type::ELEM);
    if (t.rows.first == t.rows.end) return;

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
        warps.multiply(base + step % STAGES * W::STAGE);
    }
    copies_wait<0>();
    __syncthreads();
    typename Type::Sum* sums = (typename Type::Sum*)shared;
    warps.spread(sums);
    __syncthreads();
    finish_tile<BM>(p, t, sums);
}

#define ENTRY(name, Type)                                                                                                         \
    KERNEL void __launch_bounds__(THREADS, 2) name##_128(const __grid_constant__ Args p) {                                        \
        gemm<128, 2, Type>(p);                                                                                                    \
    }                                                                                                                             \
    KERNEL void __launch_bounds__(THREADS, 2) name##_64(const __grid_constant__ Args p) {                                         \
        gemm<64, 2, Type>(p);                                                                                                     \
    }                                                                                                                             \
    KERNEL void __launch_bounds__(THREADS, 2) name##_16(const __grid_constant__ Args p) {                                         \
        gemm<16, 1, Type>(p);                                                                                                     \
    }
ENTRY(bf16, Bf16)
ENTRY(f16, Half)
ENTRY(tf32, Tf32)
ENTRY(s8, Signed)
ENTRY(u8s8, Unsigned)

KERNEL void __launch_bounds__(THREADS) sum_splits(const __grid_constant__ Args p) {
    u64 e = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (e >= p.m * p.n) return;
    float sum = 0.0f;
    for (u64 s = 0; s < p.splits; s++) sum += ((const float*)p.scratch)[s * p.m * p.n + e];
    finish(p, place_of(p, 0), e / p.n, e % p.n, sum, 0.0f);
}
