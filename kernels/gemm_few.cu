// The products of matmul.cu for few rows of x on tensor cores, at the speed of memory: decoding, and several sequences at once.
// Target: sm_80.
//
// Blocks (Numerics::Fast, the commonest formats, up to 128 rows of x): weights are the left operand of mma.m16n8k32 on bytes, 16 rows of w by
// 32 k, so that up to 8 rows of x cost the same. Bytes are the levels as stored; integer sums are scaled afterwards, of Q4_K and Q6_K by the
// groups' scales in integers and once per 256 k in floats; the minimums of Q4_K meet sums of groups of x, in two digits of a byte, in a
// multiplication of their own. x is bytes with a scale per 256, written by each block for one row, by `prepare` before for more. Where 256
// numbers have no such scale (not all finite, or all tiny) a block multiplies floats instead.
// Each multiprocessor runs one block, which has its share of the tiles of 16 rows of w; its warps share the steps of 512 k of all these
// tiles evenly. A warp copies its steps into a ring of stages of its own (cp.async) and waits for no other; sums of tiles that several warps
// had meet in shared memory at the end. Of a gated pair rows 8 to 15 of a tile are of `up`. Where x is too long for shared memory, `splits`
// blocks share k: each leaves partial sums, and the last to arrive adds all in a fixed order. Blocks for different 16 rows of x run at once
// and meet in the L2 cache.
// Floats (up to 16 rows of x): 16 rows of w to a block, whose warps share k, from global memory to registers.
// Promised instructions: IMMA, HMMA, LDGSTS.
//
// Measured on an H200 (reading 4.1 TB/s), weights not in the cache, microseconds: bf16, m = 1, 8, 16: 14336 x 4096 (117 MB, 29 at that rate)
// 35.5, 39.7, 50; 4096 x 4096 12.9, 14.3, 16.6. Of blocks an earlier form with steps of 256 k, all of x written by each block: Q4_K
// 14336 x 4096 (33 MB, 8) 18, 24, 33; 49152 x 8192 (226 MB, 55) 83, 111, 140; Q8_0 14336 x 4096 (62 MB, 15) 28, 35, 48. Copies of 144 bytes
// a row reached 2.7 TB/s, of 256 bytes 3.6, and writing x took 12 of the 33 at m = 16: hence steps of 512 and `prepare`. Lost: a block's
// warps on the same 16 rows with a barrier per tile; a ring in shared memory for bf16.
#include "few.cuh"

KERNEL void __launch_bounds__(256) prepare(const __grid_constant__ Args p) {
    prepare<0>(p);
}
KERNEL void __launch_bounds__(256) prepare_words(const __grid_constant__ Args p) {
    prepare<1>(p);
}
#define ENTRY(name, T, warps, stages, warps_16, stages_16)                                                                         \
    KERNEL void __launch_bounds__(warps * 32, 1) name##_8(const __grid_constant__ Args p) {                                       \
        few<T, 1, warps, stages>(p);                                                                                              \
    }                                                                                                                             \
    KERNEL void __launch_bounds__(warps_16 * 32, 1) name##_16(const __grid_constant__ Args p) {                                   \
        few<T, 2, warps_16, stages_16>(p);                                                                                        \
    }
ENTRY(q4_0, Q4_0, 16, 2, 12, 2)
ENTRY(q8_0, Q8_0, 8, 2, 8, 2)
ENTRY(q4_k, Q4_K, 16, 2, 12, 2)
ENTRY(q6_k, Q6_K, 8, 3, 8, 2)
#define FLOATS(name, M)                                                                                                           \
    KERNEL void __launch_bounds__(256, 2) name##_8(const __grid_constant__ Args p) {                                              \
        few_floats<M, 1>(p);                                                                                                      \
    }                                                                                                                             \
    KERNEL void __launch_bounds__(256, 2) name##_16(const __grid_constant__ Args p) {                                             \
        few_floats<M, 2>(p);                                                                                                      \
    }
FLOATS(bf16, Bf16)
FLOATS(f16, Half)
