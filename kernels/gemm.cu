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
#include "tiles.cuh"

ENTRY(bf16, Bf16, 2)
ENTRY(f16, Half, 2)
ENTRY(tf32, Tf32, 2)
ENTRY(s8, Signed, 2)
ENTRY(u8s8, Unsigned, 2)

KERNEL void __launch_bounds__(THREADS) sum_splits(const __grid_constant__ Args p) {
    u64 e = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (e >= p.m * p.n) return;
    float sum = 0.0f;
    for (u64 s = 0; s < p.splits; s++) sum += ((const float*)p.scratch)[s * p.m * p.n + e];
    finish(p, place_of(p, 0), e / p.n, e % p.n, sum, 0.0f);
}
