// Weights in blocks as dense rows of bf16 in the scratch memory, for gemm.sm_90a.cu, whose copies move 16-bit elements as they are: products of so
// many rows that this costs less than it saves (Numerics::Fast). The weight itself stays as it is stored, and no copy of it is kept.
//
// A thread writes 8 neighbouring elements: the rows of w, then those of `up`, then those of x. `any` serves all formats by a switch per 8 elements;
// the commonest have kernels of their own.
// Traffic: each operand once, and 2 bytes an element: of 14336 x 4096 in Q4_K 33 MB in and 117 MB out, 36 us at 4.1 TB/s on an H200.
// Run in the PTX interpreter and assembled; not measured on a GPU.
// Target: sm_80.
#include "eight.cuh"
#include "mma.cuh"

enum { THREADS = 256 };

template <class Weight> DEV void unpack(const Args& p) {
    u64 e = ((u64)blockIdx.x * THREADS + threadIdx.x) * 8, row = e / p.k, weights = p.up.data ? 2 * p.n : p.n;
    u32 k = (u32)(e - row * p.k);
    if (row >= weights + p.m) return;
    Eight f;
    if (row < weights) {
        const Tensor& t = row < p.n ? p.w : p.up;
        i64 at = (i64)(row < p.n ? row : row - p.n) * t.stride[1];
        f = Weight::eight(t.type, t.data + at / Weight::block(p) * Weight::bytes(p), k);
    } else {
        f = plain_eight(p.x.type, p.x.data + (i64)(row - weights) * p.x.stride[1] * (p.x.type == F32 ? 4 : 2), k);
    }
    U4 halves = {pack_bf16(f.a.x[0], f.a.x[1]), pack_bf16(f.a.x[2], f.a.x[3]), pack_bf16(f.b.x[0], f.b.x[1]), pack_bf16(f.b.x[2], f.b.x[3])};
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
