// The products of gemm.cu of f8e4m3 by f8e4m3 (Numerics::Fast), for Ada and newer.
//
// Tensor cores that multiply fp8 keep about 14 bits of a sum, so that they sum 64 of k at most (two instructions): those sums are added in f32
// registers, times the scale of w's block of 128 by 128 where there is one. A tile's columns are all in one such block.
// The instruction is one on compute capability 8.9 and 12.0; on 9.0 and 10.0 it becomes two of f16 and the conversions before them, no faster than
// bf16: there gemm.sm_90a.cu is fp8's, and this one serves what it does not.
// Promised instructions: QMMA|HMMA, LDGSTS, LDSM.
// Traffic per block and k of 64: 16 KB for 2 MFLOP: from L2 at 128 x 128, 128 flops a byte.
// Measured on an H200: 4096 cubed 0.61 ms, 224 TFLOP/s. Not measured where it is one instruction.
// Target: sm_89.
// PTX: 8.4.
#include "tiles.cuh"

ENTRY(fp8, Fp8s, 1)
