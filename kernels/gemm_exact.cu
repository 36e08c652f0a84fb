// The products of matmul.cu for many rows of x, in f32 throughout: of floats and blocks whose rows of k begin at multiples of 16 bytes, where rounding
// them for tensor cores is not allowed.
//
// 256 threads compute 128 x 128 outputs, 8 x 8 each, from tiles of 16 k in shared memory, [k][row or column]; while they multiply, the next tile's
// elements are on their way to registers, decoded on the way to shared memory. Tiles, gated pairs, groups, `splits` and what follows the sums are
// gemm.cu's. `exact_any_128` is for every format, by a switch per 8 elements.
// Traffic per block and k of 16: 16 KB of f32 for 524 kFLOP, from L2; from shared memory 4 loads of 16 bytes for 64 multiply-adds.
// Floor on an H200, whose peak is measured at 57 TFLOP/s: 4096 cubed 2.4 ms; measured 4.3 ms in f32 (32 TFLOP/s), 5.2 with bf16 operands; matmul.cu 12.4.
// Target: sm_80.
#include "gemm.cuh"
#include "eight.cuh"

enum : u32 { TILE = 128, STEP = 16, PITCH = TILE + 4, OPERAND = STEP * PITCH };

// Loaded and stored at once.
struct alignas(16) Float4 {
    float x[4];
};

struct Plain {
    static DEV u32 block(const Args&) {
        return 1;
    }
    static DEV u32 bytes(const Args& p) {
        return p.w.type == F32 ? 4 : 2;
    }
    static DEV Eight eight(i64 type, const u8* row, u32 k) {
        return plain_eight(type, row, k);
    }
};

DEV void spread(float* to, const Eight& f) {
#pragma unroll
    for (u32 u = 0; u < 8; u++) to[u * PITCH] = u < 4 ? f.a.x[u] : f.b.x[u - 4];
}

template <class Weight> DEV void exact(const Args& p) {
    extern __shared__ __align__(16) u8 shared[];
    float* tiles = (float*)shared; // x's and w's, twice
    Tile t = tile_of<TILE>(p, 1, STEP);
    if (t.rows.first == t.rows.end) return;
    // What a thread loads: 8 neighbouring k of a row of x and of a row of w.
    u32 line = threadIdx.x % TILE, part = threadIdx.x / TILE * 8, size = p.x.type == F32 ? 4 : 2;
    u64 i = t.rows.first + line;
    const u8* x = i < t.rows.end ? p.x.data + (matrix_of_rows(p, p.x, t.rows.b) + (i64)i * p.x.stride[1]) * size : nullptr;
    const u8* w = weight_row(p, t, line, Weight::block(p), Weight::bytes(p));
    Eight next_x, next_w;
    auto load = [&](u32 step) {
        u32 k = step * STEP + part;
        next_x = next_w = {};
        if (k < p.k && x) next_x = plain_eight(p.x.type, x, k);
        if (k < p.k && w) next_w = Weight::eight(p.w.type, w, k);
    };
    auto keep = [&](u32 stage) {
        float* to = tiles + stage * 2 * OPERAND + part * PITCH + line;
        spread(to, next_x);
        spread(to + OPERAND, next_w);
    };
    u32 row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
    float sum[8][8] = {};
    if (t.first_step < t.end_step) {
        load(t.first_step);
        keep(0);
    }
    __syncthreads();
#pragma unroll 1
    for (u32 step = t.first_step; step < t.end_step; step++) {
        u32 stage = (step - t.first_step) % 2;
        bool more = step + 1 < t.end_step;
        if (more) load(step + 1);
        const float *a = tiles + stage * 2 * OPERAND + row, *b = tiles + (stage * 2 + 1) * OPERAND + column;
#pragma unroll 4
        for (u32 k = 0; k < STEP; k++) {
            Float4 u[2] = {*(const Float4*)(a + k * PITCH), *(const Float4*)(a + k * PITCH + 64)};
            Float4 v[2] = {*(const Float4*)(b + k * PITCH), *(const Float4*)(b + k * PITCH + 64)};
#pragma unroll
            for (u32 c = 0; c < 8; c++) {
#pragma unroll
                for (u32 d = 0; d < 8; d++) sum[c][d] += u[c / 4].x[c % 4] * v[d / 4].x[d % 4];
            }
        }
        if (more) keep(stage ^ 1);
        __syncthreads();
    }
    float* sums = (float*)shared;
#pragma unroll
    for (u32 c = 0; c < 8; c++) {
#pragma unroll
        for (u32 d = 0; d < 8; d += 4) {
            *(Float4*)(sums + sum_place(row + c / 4 * 64 + c % 4, column + d / 4 * 64)) = {sum[c][d], sum[c][d + 1], sum[c][d + 2], sum[c][d + 3]};
        }
    }
    __syncthreads();
    finish_tile<TILE>(p, t, sums);
}

KERNEL void __launch_bounds__(THREADS, 1) exact_128(const __grid_constant__ Args p) {
    exact<Plain>(p);
}
KERNEL void __launch_bounds__(THREADS, 1) exact_any_128(const __grid_constant__ Args p) {
    exact<Any>(p);
}
