// What all matrix products share: their parameters (src/cuda/matmul.rs writes them in this order), the rows of a tile, and what
// follows the sums.
#pragma once
#include "types.cuh"
#include "activation.cuh"

// 16 bytes, moved at once.
struct alignas(16) U4 {
    u32 x, y, z, w;
};

enum Scales { NO_SCALES, OF_TENSOR, OF_CHANNELS, OF_BLOCKS };

struct Args {
    Tensor x, w, out, up, bias, residual, x_scale, w_scale, row_scale, offsets;
    u64 extent[2]; // of the batch, innermost first
    u64 m, n, k;
    u64 groups; // of rows with a weight each, as `offsets` says; 0: the batch's matrices
    u64 batch, splits;
    u32 act;
    float scale;
    u32 w_scales;
    u32 direct; // sums are stored as they are, 16 bytes at a time
    u8* scratch;
    u32 w_block, w_bytes; // of w's type
};

// Offset of matrix `b` of the batch; of a group, where the operand is a weight.
DEV i64 matrix(const Args& p, const Tensor& t, u64 b) {
    return p.groups ? (i64)b * t.stride[2] : (i64)(b % p.extent[0]) * t.stride[2] + (i64)(b / p.extent[0]) * t.stride[3];
}
DEV i64 matrix_of_rows(const Args& p, const Tensor& t, u64 b) {
    return p.groups ? 0 : matrix(p, t, b);
}

// Rows that are multiplied by one weight, `b` of them; by none where `b` is negative: these are zero.
struct Rows {
    i64 b;
    u64 first, end;
};

DEV i64 offset(const Args& p, i64 g, i64 rows) {
    i64 o = load_index(p.offsets, g * p.offsets.stride[0]);
    return o < 0 ? 0 : o > rows ? rows : o;
}

// The rows of tile `tile` of up to `height` rows of one matrix. Of groups: the tiles of the rows before the first one, then those of
// each, then those of the rows behind. 32 groups at a time, a lane each; all lanes learn the result, none (`first == end`) beyond the
// last tile.
DEV Rows rows_of(const Args& p, u64 tile, u32 height) {
    if (!p.groups) {
        u64 tiles = (p.m + height - 1) / height, first = tile % tiles * height;
        return {(i64)(tile / tiles), first, first + height < p.m ? first + height : p.m};
    }
    int lane = threadIdx.x % 32, rows = (int)p.m, before = 0, low = 0, groups = (int)p.groups;
    Rows r = {-1, 0, 0};
#pragma unroll 1
    for (int base = -1; base <= groups; base += 32) {
        int g = base + lane; // from offset g to offset g + 1
        int end = g < groups ? (int)offset(p, g + 1, rows) : rows;
        for (int step = 1; step < 32; step *= 2) { // rising
            int other = __shfl_up_sync(0xffffffffu, end, step);
            if (lane >= step && other > end) end = other;
        }
        if (end < low) end = low;
        int first = __shfl_up_sync(0xffffffffu, end, 1);
        if (lane == 0) first = low;
        int tiles = (end - first + (int)height - 1) / (int)height, sum = tiles;
        for (int step = 1; step < 32; step *= 2) {
            int other = __shfl_up_sync(0xffffffffu, sum, step);
            if (lane >= step) sum += other;
        }
        int at = (int)tile - before - (sum - tiles);
        int found = at >= 0 && at < tiles ? lane : -1;
        for (int step = 16; step > 0; step /= 2) {
            int other = __shfl_xor_sync(0xffffffffu, found, step);
            found = other > found ? other : found;
        }
        if (found >= 0) {
            int f = first + at * (int)height, e = f + (int)height < end ? f + (int)height : end;
            int group = base + found;
            r.b = group < groups ? group : -1;
            r.first = (u64)__shfl_sync(0xffffffffu, f, found);
            r.end = (u64)__shfl_sync(0xffffffffu, e, found);
            return r;
        }
        before += __shfl_sync(0xffffffffu, sum, 31);
        low = __shfl_sync(0xffffffffu, end, 31);
    }
    return r;
}

// The group of a row, or -1.
DEV i64 group_of(const Args& p, u64 row) {
    int lane = threadIdx.x % 32, first = (int)p.groups + 1;
#pragma unroll 1
    for (int g = lane; g <= (int)p.groups; g += 32) {
        if (offset(p, g, p.m) > (i64)row) {
            first = g;
            break;
        }
    }
    for (int step = 16; step > 0; step /= 2) {
        int other = __shfl_xor_sync(0xffffffffu, first, step);
        first = other < first ? other : first;
    }
    return first <= (int)p.groups ? first - 1 : -1;
}

DEV float w_scale(const Args& p, u64 j) {
    return load_float(p.w_scale, p.w_scales == OF_TENSOR ? 0 : j * p.w_scale.stride[0]);
}

// Scale of the products of column j with k from there on, in blocks of 128 by 128.
DEV float block_scale(const Args& p, u64 j, u64 k) {
    return load_float(p.w_scale, j / 128 * p.w_scale.stride[1] + k / 128 * p.w_scale.stride[0]);
}

// Where the matrix of some rows begins.
struct Place {
    i64 b, out, residual;
};
DEV Place place_of(const Args& p, i64 b) {
    return {b, matrix_of_rows(p, p.out, b), matrix_of_rows(p, p.residual, b)};
}

// What follows the sums of output i, j.
DEV float finished(const Args& p, const Place& at, u64 i, u64 j, float y, float up) {
    if (p.x_scale.data) y *= load_float(p.x_scale, i * p.x_scale.stride[0]);
    if (p.w_scales == OF_TENSOR || p.w_scales == OF_CHANNELS) y *= w_scale(p, j);
    if (p.bias.data) y += load_float(p.bias, j * p.bias.stride[0]);
    y = activate(p.act, y);
    if (p.up.data) y *= up;
    y *= p.scale;
    if (p.row_scale.data) y *= load_float(p.row_scale, i * p.row_scale.stride[0]);
    if (p.residual.data) y += load_float(p.residual, at.residual + i * p.residual.stride[1] + j * p.residual.stride[0]);
    return at.b < 0 ? 0.0f : y; // rows of no group
}
DEV void finish(const Args& p, const Place& at, u64 i, u64 j, float y, float up) {
    store(p.out, at.out + i * p.out.stride[1] + j * p.out.stride[0], finished(p, at, i, j, y, up));
}
DEV void finish(const Args& p, const Place& at, u64 i, u64 j, int y, int) {
    if (p.out.type != I32) return finish(p, at, i, j, (float)y, 0.0f);
    ((int*)p.out.data)[at.out + i * p.out.stride[1] + j * p.out.stride[0]] = y;
}
