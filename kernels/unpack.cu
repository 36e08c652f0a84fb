// Weights in blocks or in fp8 as dense rows of bf16 in the scratch memory, for gemm.sm_90a.cu, whose copies move 16-bit elements as they are:
// products of so many rows that this costs less than it saves (Numerics::Fast, but where all numbers are exact in bf16). The weight itself stays as
// it is stored, and no copy of it is kept.
//
// A thread writes 8 neighbouring elements: the rows of w, then those of `up`, then those of x, which are left where they are if they are bf16. `any` serves all formats by a switch per 8 elements;
// the commonest have kernels of their own.
// Traffic: each operand once, and 2 bytes an element: of 14336 x 4096 in Q4_K 33 MB in and 117 MB out, 36 us at 4.1 TB/s on an H200.
// Measured there, 128 rows by 25600 x 4096: with the product 154 us in Q4_K and 147 in Q8_0, the product of bf16 alone 59; gemm_mixed.cu took 3 to 6
// times that product's time.
// 14336 x 4096 in f8e4m3 (59 MB) 51 us.
// Target: sm_80.
#include "eight.cuh"

enum { THREADS = 256 };

template <class Weight> DEV void unpack(const Args& p) {
    u64 e = ((u64)blockIdx.x * THREADS + threadIdx.x) * 8, row = e / p.k, weights = p.up.data ? 2 * p.n : p.n;
    u32 k = (u32)(e - row * p.k);
    if (row >= weights + (p.x.type == BF16 ? 0 : p.m)) return;
    U4 halves;
    if (row < weights) {
        const Tensor& t = row < p.n ? p.w : p.up;
        i64 at = (i64)(row < p.n ? row : row - p.n) * t.stride[1];
        halves = Weight::halves(t.type, t.data + at / Weight::block(p) * Weight::bytes(p), k);
        if (Weight::SCALED && p.w_scales == OF_BLOCKS) scale_packed(p, row, k, halves);
    } else {
        halves = packed(float_eight(p.x.type, p.x.data + (i64)(row - weights) * p.x.stride[1] * float_bytes(p.x.type), k));
    }
    *(U4*)(p.scratch + e * 2) = halves;
}

#define ENTRY(name, ...)                                                                                                          \
    KERNEL void __launch_bounds__(THREADS) name(const __grid_constant__ Args p) {                                                 \
        unpack<__VA_ARGS__>(p);                                                                                                   \
    }
ENTRY(any, Any)
ENTRY(q4_0, Only<Q4_0>)
ENTRY(q8_0, Only<Q8_0>)
ENTRY(q4_k, Only<Q4_K>)
ENTRY(q6_k, Only<Q6_K>)
ENTRY(f8e4m3, Fp8)
