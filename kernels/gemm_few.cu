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
// Floats and f8e4m3 (up to 16 rows of 16-bit x): 16 rows of w to a block, whose warps share k, from global memory to registers; fp8 becomes x's
// type there, in which it is exact.
// Promised instructions: IMMA, HMMA, LDGSTS.
//
// Measured on an H200 (reading 4.1 TB/s; torch's bf16 product 3.8), weights not in the cache, microseconds at m = 1, 8, 16:
//   14336 x 4096: bf16 (117 MB) 34.7, 35.0, 37.4; f8e4m3 (59 MB) by bf16 26.7, 27.5, 32.8; Q8_0 (62 MB) 24.9, 31.0, 35.5; Q4_K (33 MB) 16.0, 20.2, 24.1; Q6_K 25.3, 30.0, 37.6
//   4096 x 4096:  bf16 (34 MB) 11.9, 11.9, 13.0; Q8_0 (18 MB) 11.9, 14.9, 17.7; Q4_K (9 MB) 10.1, 12.6, 15.8
//   49152 x 8192: bf16 (805 MB) 219, 203, 209; Q8_0 (428 MB) 126, 135, 216; Q4_K (226 MB) 69, 76, 130
// Q4_K 14336 x 4096 at m = 32 38, at m = 64 59. About 5 of these are the launch and what precedes and follows the copies; since launches begin early
// blocks take 3 less: 25600 x 4096 in Q4_K 21.1, 28.8, 35.4 (before: 24.8, 32.5, 39.6), in Q8_0 35.7, 44.2, 51.3.
// Lost: 256 k to a copy (144 bytes a row reach 2.7 TB/s, 288 3.3); x written by each block (12 of 33 at m = 16); 16 warps with three stages
// (x needs the room: more splits); a tile of w to a block, its warps sharing k; a ring in shared memory for bf16.
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
ENTRY(q4_0, Q4_0, 12, 2, 12, 2)
ENTRY(q8_0, Q8_0, 8, 2, 8, 2)
ENTRY(q4_k, Q4_K, 12, 2, 12, 2)
ENTRY(q6_k, Q6_K, 12, 2, 8, 2)
#define FLOATS(name, M, fp8)                                                                                                      \
    KERNEL void __launch_bounds__(256, 2) name##_8(const __grid_constant__ Args p) {                                              \
        few_floats<M, 1, fp8>(p);                                                                                                 \
    }                                                                                                                             \
    KERNEL void __launch_bounds__(256, 2) name##_16(const __grid_constant__ Args p) {                                             \
        few_floats<M, 2, fp8>(p);                                                                                                 \
    }
FLOATS(bf16, Bf16, false)
FLOATS(f16, Half, false)
FLOATS(bf16_f8e4m3, Bf16, true)
FLOATS(f16_f8e4m3, Half, true)
