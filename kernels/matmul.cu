// out[b, i, j] = residual + scale * act(sum_k x[b, i, k] w[b, j, k] + bias[j]) (* x upT), any dtype by a switch in the
// load. `gemv`: a warp per output, for few rows. `tiled`: 256 threads compute 64 x 64 outputs, 4 x 4 each, from tiles of
// 64 x 16 in shared memory. Right before fast: tensor cores come with their own kernels.
#include "types.cuh"
#include "activation.cuh"

struct Args {
    Tensor x, w, out, up, bias, residual;
    u64 extent[2]; // of the batch, innermost first
    u64 m, n, k, groups;
    u32 act;
    float scale;
};

// Offset of matrix `b` of the batch.
DEV i64 matrix(const Args& p, const Tensor& t, u64 b) {
    return (i64)(b % p.extent[0]) * t.stride[2] + (i64)(b / p.extent[0]) * t.stride[3];
}

DEV void finish(const Args& p, u64 b, u64 i, u64 j, float y, float up) {
    if (p.bias.data) y += load(p.bias, j * p.bias.stride[0]);
    y = activate(p.act, y);
    if (p.up.data) y *= up;
    y *= p.scale;
    if (p.residual.data) {
        y += load(p.residual, matrix(p, p.residual, b) + i * p.residual.stride[1] + j * p.residual.stride[0]);
    }
    store(p.out, matrix(p, p.out, b) + i * p.out.stride[1] + j * p.out.stride[0], y);
}

KERNEL void __launch_bounds__(128) gemv(const __grid_constant__ Args p) {
    u64 group = (u64)blockIdx.x * 4 + threadIdx.x / 32;
    if (group >= p.groups) return; // the whole warp
    u64 j = group % p.n, i = group / p.n % p.m, b = group / (p.n * p.m);
    i64 x = matrix(p, p.x, b) + i * p.x.stride[1];
    i64 w = matrix(p, p.w, b) + j * p.w.stride[1];
    i64 u = j * p.up.stride[1];
    float sum = 0.0f, up = 0.0f;
#pragma unroll 1
    for (u64 k = threadIdx.x % 32; k < p.k; k += 32) {
        float v = load(p.x, x + k * p.x.stride[0]);
        sum += v * load(p.w, w + k * p.w.stride[0]);
        if (p.up.data) up += v * load(p.up, u + k * p.up.stride[0]);
    }
    sum = warp_sum(sum);
    up = warp_sum(up);
    if (threadIdx.x % 32 == 0) finish(p, b, i, j, sum, up);
}

KERNEL void __launch_bounds__(256, 2) tiled(const __grid_constant__ Args p) {
    // Tiles of the operands, [k][row] and [k][column]; then the sums, so that the epilogue is one loop and not 16 copies.
    __shared__ float shared[2][64][64];
    float(*xs)[64] = shared[0], (*ws)[64] = shared[0] + 16, (*us)[64] = shared[0] + 32;
    u64 tiles_n = (p.n + 63) / 64, tiles_m = (p.m + 63) / 64;
    u64 group = blockIdx.x;
    u64 first_j = group % tiles_n * 64, first_i = group / tiles_n % tiles_m * 64, b = group / (tiles_n * tiles_m);
    i64 x = matrix(p, p.x, b), w = matrix(p, p.w, b);
    u32 part = threadIdx.x % 16, quad = threadIdx.x / 16 * 4; // when loading: which k, and which 4 rows
    u32 row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    float sum[4][4] = {}, up[4][4] = {};
    for (u64 first = 0; first < p.k; first += 16) {
        u64 k = first + part;
#pragma unroll 1
        for (u32 c = 0; c < 4; c++) {
            u64 i = first_i + quad + c, j = first_j + quad + c;
            xs[part][quad + c] = k < p.k && i < p.m ? load(p.x, x + i * p.x.stride[1] + k * p.x.stride[0]) : 0.0f;
            ws[part][quad + c] = k < p.k && j < p.n ? load(p.w, w + j * p.w.stride[1] + k * p.w.stride[0]) : 0.0f;
            if (p.up.data) us[part][quad + c] = k < p.k && j < p.n ? load(p.up, j * p.up.stride[1] + k * p.up.stride[0]) : 0.0f;
        }
        __syncthreads();
        u32 count = p.k - first < 16 ? (u32)(p.k - first) : 16;
        for (u32 kk = 0; kk < count; kk++) {
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
#pragma unroll
                for (u32 d = 0; d < 4; d++) sum[c][d] += xs[kk][row + c] * ws[kk][column + d];
            }
            if (p.up.data) {
#pragma unroll
                for (u32 c = 0; c < 4; c++) {
#pragma unroll
                    for (u32 d = 0; d < 4; d++) up[c][d] += xs[kk][row + c] * us[kk][column + d];
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 c = 0; c < 4; c++) {
#pragma unroll
        for (u32 d = 0; d < 4; d++) {
            shared[0][row + c][column + d] = sum[c][d];
            shared[1][row + c][column + d] = up[c][d];
        }
    }
    __syncthreads();
#pragma unroll 1
    for (u32 e = threadIdx.x; e < 64 * 64; e += 256) {
        u64 i = first_i + e / 64, j = first_j + e % 64;
        if (i < p.m && j < p.n) finish(p, b, i, j, shared[0][e / 64][e % 64], shared[1][e / 64][e % 64]);
    }
}
