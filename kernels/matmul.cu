// out[b, i, j] = residual + scale * act(sum_k x[b, i, k] w[b, j, k] + bias[j]) (* x upT), and the same of groups of rows with a weight
// each: every type, layout and option, in f32 (in i32 of integers), by a switch in the load. What is faster where it applies: gemm.cu
// (tensor cores), gemv.cu (blocks by few rows).
// `gemv`: a warp per output, for few rows; lanes take four neighbouring k each. `tiled`: 256 threads compute 64 x 64 outputs, 4 x 4
// each, from tiles of 64 x 16 in shared memory; the operands go through one load, so that the decoders are there once.
// Traffic of `tiled`: x n/64 times, w m/64 times, from the L2 cache mostly.
// Estimate on an H200: 4096 cubed in f32: 16 multiply-adds to 2 shared loads of 16 bytes is bound by shared memory at about 25 of the
// 67 TFLOP/s, 5.5 ms. Measured there: 12.4 ms.
#include "product.cuh"

// (Blocks do not meet integers.)
// Four elements of a row from k on; zeros from `end` on.
template <bool BLOCKS> DEV Four load_four(const Tensor& t, i64 row, u64 k, u64 end) {
    if (BLOCKS && t.type >= Q4_0) return load_blocks(t.type, t.data, row + k);
    Four f;
#pragma unroll
    for (u32 u = 0; u < 4; u++) f.x[u] = k + u < end ? load_plain(t, row + (i64)(k + u) * t.stride[0]) : 0.0f;
    return f;
}

template <class Sum> DEV Sum warp_total(Sum v) {
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

template <class Sum> DEV void few_rows(const Args& p) {
    u64 output = (u64)blockIdx.x * 4 + threadIdx.x / 32;
    if (output >= p.batch * p.m * p.n) return; // the whole warp
    u64 j = output % p.n, i = output / p.n % p.m;
    i64 b = p.groups ? group_of(p, i) : (i64)(output / (p.n * p.m));
    i64 x = matrix_of_rows(p, p.x, b) + i * p.x.stride[1];
    Sum sum = 0, up = 0;
#pragma unroll 1
    for (u64 k = threadIdx.x % 32 * 4; k < p.k && b >= 0; k += 128) {
        Four v = load_four<false>(p.x, x, k, p.k);
#pragma unroll 1
        for (u32 factor = 0; factor < (p.up.data ? 2 : 1); factor++) {
            Tensor t;
            t.data = factor ? p.up.data : p.w.data;
            t.type = p.w.type;
            t.stride[0] = factor ? p.up.stride[0] : p.w.stride[0];
            i64 row = factor ? j * p.up.stride[1] + b * (p.groups ? p.up.stride[2] : 0) : matrix(p, p.w, b) + j * p.w.stride[1];
            Four w = load_four<(Sum)0.5f != 0>(t, row, k, p.k);
            float scale = p.w_scales == OF_BLOCKS ? block_scale(p, j, k) : 1.0f;
            Sum part = 0;
#pragma unroll
            for (u32 u = 0; u < 4; u++) part += (Sum)v.x[u] * (Sum)(w.x[u] * scale);
            if (factor) up += part;
            else sum += part;
        }
    }
    sum = warp_total(sum), up = warp_total(up);
    if (threadIdx.x % 32 == 0) finish(p, place_of(p, b), i, j, sum, up);
}

template <class Sum> struct alignas(16) Sums {
    Sum x[4];
};

template <class Sum> DEV void tiles(const Args& p) {
    // Tiles of the operands, [k][row or column]; then the sums, so that the epilogue is one loop and not 16 copies.
    enum { PITCH = 68 };
    __shared__ alignas(16) Sum shared[2][64 * 64];
    Sum* tile = shared[0];
    u64 tiles_n = (p.n + 63) / 64, first_j = blockIdx.x % tiles_n * 64;
    Rows rows = rows_of(p, blockIdx.x / tiles_n, 64);
    if (rows.first == rows.end) return;
    u32 part = threadIdx.x % 4 * 4, line = threadIdx.x / 4; // when loading: which four k, and which row
    u32 row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    u32 operands = p.up.data ? 3 : 2;
    Sum sum[4][4] = {}, up[4][4] = {};
#pragma unroll 1
    for (u64 first = 0; first < p.k && rows.b >= 0; first += 16) {
#pragma unroll 1
        for (u32 o = 0; o < operands; o++) {
            u64 k = first + part, at = o == 0 ? rows.first + line : first_j + line;
            bool inside = k < p.k && at < (o == 0 ? rows.end : p.n);
            Tensor t;
            t.data = o == 0 ? p.x.data : o == 1 ? p.w.data : p.up.data;
            t.type = o == 0 ? p.x.type : p.w.type;
            t.stride[0] = o == 0 ? p.x.stride[0] : o == 1 ? p.w.stride[0] : p.up.stride[0];
            i64 matrix_at = o == 0 ? matrix_of_rows(p, p.x, rows.b) : o == 1 ? matrix(p, p.w, rows.b) : p.groups ? rows.b * p.up.stride[2] : 0;
            i64 line_at = matrix_at + at * (o == 0 ? p.x.stride[1] : o == 1 ? p.w.stride[1] : p.up.stride[1]);
            Four f = {};
            if (inside) f = load_four<(Sum)0.5f != 0>(t, line_at, k, p.k);
            float scale = o == 1 && inside && p.w_scales == OF_BLOCKS ? block_scale(p, at, k) : 1.0f;
#pragma unroll
            for (u32 u = 0; u < 4; u++) tile[(o * 16 + part + u) * PITCH + line] = (Sum)(f.x[u] * scale);
        }
        __syncthreads();
        u32 count = p.k - first < 16 ? (u32)(p.k - first) : 16;
        for (u32 kk = 0; kk < count; kk++) {
            Sums<Sum> x = *(const Sums<Sum>*)(tile + kk * PITCH + row), w = *(const Sums<Sum>*)(tile + (16 + kk) * PITCH + column);
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
#pragma unroll
                for (u32 d = 0; d < 4; d++) sum[c][d] += x.x[c] * w.x[d];
            }
            if (operands == 3) {
                Sums<Sum> u = *(const Sums<Sum>*)(tile + (32 + kk) * PITCH + column);
#pragma unroll
                for (u32 c = 0; c < 4; c++) {
#pragma unroll
                    for (u32 d = 0; d < 4; d++) up[c][d] += x.x[c] * u.x[d];
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 c = 0; c < 4; c++) {
#pragma unroll
        for (u32 d = 0; d < 4; d++) {
            shared[0][(row + c) * 64 + column + d] = sum[c][d];
            shared[1][(row + c) * 64 + column + d] = up[c][d];
        }
    }
    __syncthreads();
    Place at = place_of(p, rows.b);
#pragma unroll 1
    for (u32 e = threadIdx.x; e < 64 * 64; e += 256) {
        u64 i = rows.first + e / 64, j = first_j + e % 64;
        if (i < rows.end && j < p.n) finish(p, at, i, j, shared[0][e], shared[1][e]);
    }
}

KERNEL void __launch_bounds__(128) gemv(const __grid_constant__ Args p) {
    few_rows<float>(p);
}
KERNEL void __launch_bounds__(128) gemv_int(const __grid_constant__ Args p) {
    few_rows<int>(p);
}
KERNEL void __launch_bounds__(256, 2) tiled(const __grid_constant__ Args p) {
    tiles<float>(p);
}
KERNEL void __launch_bounds__(256, 2) tiled_int(const __grid_constant__ Args p) {
    tiles<int>(p);
}
