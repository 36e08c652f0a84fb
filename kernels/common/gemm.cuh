// Tiles of products on tensor cores: which one a block computes, fragments from shared memory, and what becomes of the sums.
#pragma once
#include "product.cuh"
#include "mma.cuh"

enum { THREADS = 256, BN = 128, BK = 64, STAGES = 4 }; // BK in bytes

// Byte of chunk `chunk` of row `row` of a tile.
DEV u32 place(u32 row, u32 chunk) {
    return row * BK + ((chunk ^ (row >> 1 & 3)) << 4);
}
// Element of the sums' tile.
DEV u32 sum_place(u32 row, u32 column) {
    return row * BN + (column ^ (row & 7) << 3);
}

DEV float as_float(float y) {
    return y;
}
DEV float as_float(int y) {
    return (float)y;
}

// Eight sums as they are, to 16 (or 32) bytes of out.
template <class Sum> DEV void store_eight(const Tensor& out, i64 at, const Sum (&y)[8]) {
    if (out.type == F32 || out.type == I32) {
        U4* to = (U4*)((u32*)out.data + at);
        u32 b[8];
#pragma unroll
        for (u32 u = 0; u < 8; u++) b[u] = out.type == F32 ? __float_as_uint(as_float(y[u])) : (u32)(int)y[u];
        to[0] = {b[0], b[1], b[2], b[3]}, to[1] = {b[4], b[5], b[6], b[7]};
    } else {
        u32 b[4];
#pragma unroll
        for (u32 u = 0; u < 4; u++) {
            float low = as_float(y[2 * u]), high = as_float(y[2 * u + 1]);
            b[u] = out.type == BF16 ? pack_bf16(low, high) : pack_f16(low, high);
        }
        *(U4*)((u16*)out.data + at) = {b[0], b[1], b[2], b[3]};
    }
}

// What a block computes: BM x BN outputs of one matrix, or of a gated pair BM x BN / 2, from a part of k.
struct Tile {
    Rows rows;
    u64 first_j;
    u32 columns, split, first_step, end_step; // in steps of so many bytes of k
    bool gated;
};

// Tile `at` of so many, the whole of k to be said. Neighbours share operands: 8 tiles down, then right.
template <u32 BM> DEV Tile tile_at(const Args& p, u32 at, u32 tiles) {
    Tile t;
    t.gated = p.up.data != nullptr;
    t.columns = t.gated ? BN / 2 : BN;
    u32 tiles_n = (u32)((p.n + t.columns - 1) / t.columns), tiles_m = tiles / tiles_n;
    u32 band = at / (8 * tiles_n) * 8, height = tiles_m - band < 8 ? tiles_m - band : 8, inside = at % (8 * tiles_n);
    t.rows = rows_of(p, band + inside % height, BM);
    t.first_j = (u64)(inside / height) * t.columns;
    return t;
}
// A tile for each block, or for `splits` of them.
template <u32 BM> DEV Tile tile_of(const Args& p, u32 elem, u32 step = BK) {
    u32 tiles = gridDim.x / (u32)p.splits;
    Tile t = tile_at<BM>(p, blockIdx.x % tiles, tiles);
    t.split = blockIdx.x / tiles;
    u64 steps = (p.k * elem + step - 1) / step;
    t.first_step = (u32)(steps * t.split / p.splits);
    t.end_step = t.rows.b < 0 ? t.first_step : (u32)(steps * (t.split + 1) / p.splits);
    return t;
}

// Where column `column` of the tile begins in w, or from the tile's middle on in up: null beyond n.
DEV const u8* weight_row(const Args& p, const Tile& t, u32 column, u32 elements, u32 bytes) {
    bool second = t.gated && column >= BN / 2;
    u64 j = t.first_j + (second ? column - BN / 2 : column);
    if (j >= p.n) return nullptr;
    i64 b = t.rows.b < 0 ? 0 : t.rows.b;
    i64 at = second ? (p.groups ? b * p.up.stride[2] : 0) + (i64)j * p.up.stride[1] : matrix(p, p.w, b) + (i64)j * p.w.stride[1];
    return (second ? p.up.data : p.w.data) + at / elements * bytes;
}

// The 8 warps' shares of BM x BN sums.
template <u32 BM, u32 WARPS_M, class Type> struct Warps {
    typedef typename Type::Sum Sum;
    enum : u32 {
        WARPS_N = 8 / WARPS_M, WM = BM / WARPS_M, WN = BN / WARPS_N, MI = WM / 16, NI = WN / 8,
        A_BYTES = BM * BK, STAGE = A_BYTES + BN * BK
    };
    Sum sums[MI][NI][4];

    // Adds the products of 64 bytes of k. Sums that are short of bits in the tensor cores are added here, times a scale.
    DEV void multiply(u32 a_tile, float scale = 1.0f) {
        if constexpr (Type::SHORT) return multiply_short(a_tile, scale);
        u32 lane = threadIdx.x % 32, wm = threadIdx.x / 32 / WARPS_N, wn = threadIdx.x / 32 % WARPS_N, b_tile = a_tile + A_BYTES;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 a[MI][4], b[NI / 2][4];
#pragma unroll
            for (u32 i = 0; i < MI; i++) load_matrices(a[i], a_tile + place(wm * WM + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
            for (u32 j = 0; j < NI / 2; j++) {
                load_matrices(b[j], b_tile + place(wn * WN + j * 16 + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (u32 i = 0; i < MI; i++) {
#pragma unroll
                for (u32 j = 0; j < NI; j++) Type::mma(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
        }
    }

    DEV void multiply_short(u32 a_tile, float scale) {
        u32 lane = threadIdx.x % 32, wm = threadIdx.x / 32 / WARPS_N, wn = threadIdx.x / 32 % WARPS_N, b_tile = a_tile + A_BYTES;
        u32 b[2][NI / 2][4];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
#pragma unroll
            for (u32 j = 0; j < NI / 2; j++) {
                load_matrices(b[half][j], b_tile + place(wn * WN + j * 16 + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
            }
        }
#pragma unroll
        for (u32 i = 0; i < MI; i++) {
            u32 a[2][4];
#pragma unroll
            for (u32 half = 0; half < 2; half++) load_matrices(a[half], a_tile + place(wm * WM + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
            for (u32 j = 0; j < NI; j++) {
                float part[4] = {};
#pragma unroll
                for (u32 half = 0; half < 2; half++) Type::mma(part, a[half], b[half][j / 2][j % 2 * 2], b[half][j / 2][j % 2 * 2 + 1]);
#pragma unroll
                for (u32 u = 0; u < 4; u++) sums[i][j][u] += scale * part[u];
            }
        }
    }

    // To rows in shared memory.
    DEV void spread(Sum* out) {
        u32 lane = threadIdx.x % 32, wm = threadIdx.x / 32 / WARPS_N, wn = threadIdx.x / 32 % WARPS_N;
        struct alignas(8) Pair {
            Sum low, high;
        };
#pragma unroll
        for (u32 i = 0; i < MI; i++) {
#pragma unroll
            for (u32 j = 0; j < NI; j++) {
                u32 row = wm * WM + i * 16 + lane / 4, column = wn * WN + j * 8 + lane % 4 * 2;
                *(Pair*)(out + sum_place(row, column)) = {sums[i][j][0], sums[i][j][1]};
                *(Pair*)(out + sum_place(row + 8, column)) = {sums[i][j][2], sums[i][j][3]};
            }
        }
    }
};

// From rows in shared memory to out, or to the scratch memory of partial sums.
template <u32 BM, class Sum> DEV void finish_tile(const Args& p, const Tile& t, const Sum* sums) {
    Place to = place_of(p, t.rows.b);
    u32 eighths = t.columns / 8;
#pragma unroll 1
    for (u32 e = threadIdx.x; e < BM * eighths; e += THREADS) {
        u32 row = e / eighths, column = e % eighths * 8;
        u64 i = t.rows.first + row, j = t.first_j + column;
        if (i >= t.rows.end || j >= p.n) continue;
        const Sum* sum = sums + sum_place(row, column);
        if (p.splits > 1) {
            float* partial = (float*)p.scratch + (t.split * p.m + i) * p.n + j;
#pragma unroll 1
            for (u32 u = 0; u < 8 && j + u < p.n; u++) partial[u] = as_float(sum[u]);
        } else if (p.direct && j + 8 <= p.n && t.rows.b >= 0) {
            Sum y[8];
#pragma unroll
            for (u32 u = 0; u < 8; u++) y[u] = sum[u];
            store_eight(p.out, to.out + i * p.out.stride[1] + j, y);
        } else {
            const Sum* up = t.gated ? sums + sum_place(row, column + BN / 2) : sum;
#pragma unroll 1
            for (u32 u = 0; u < 8 && j + u < p.n; u++) finish(p, to, i, j + u, sum[u], up[u]);
        }
    }
}
