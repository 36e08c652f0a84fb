// The tiles of gemm.cu where their number leaves a part of the device idle, as neither whole tiles nor equal parts of k fill it (stream-K, of
// Osama et al., 2023): all tiles' steps of k lie in one line, of which every block has an equal share. What a share holds of a tile in part is
// kept as it is, two parts a block at most, and `sum` adds a tile's parts in the order of k: the bits depend on the number of blocks alone.
// Traffic: that of gemm.cu, and for each tile that is cut its sums written and read once for each part, 64 KB (BM 128), mostly from L2.
// Estimate: 512 x 5440 x 2048 in bf16 on an A100 (216 blocks at once): 172 tiles take as long as 216, so 0.8 of the time, less about 3 us for the
// parts. Run in the PTX interpreter and assembled; not measured on a GPU. Integers and gated pairs keep to gemm.cu.
// Promised instructions: HMMA, LDGSTS, LDSM.
// Target: sm_80.
#include "tiles.cuh"

// Where the share of a block begins among `total` steps.
DEV u64 share(u64 total, u64 block, u64 blocks) {
    return total * block / blocks;
}
template <u32 BM> DEV u32 tiles_of(const Args& p) {
    return (u32)((p.m + BM - 1) / BM * ((p.n + BN - 1) / BN));
}
DEV u32 steps_of(const Args& p, u32 elem) {
    return (u32)((p.k * elem + BK - 1) / BK);
}

// What a block does next: a tile, its first step and the one behind its last.
template <u32 BM> DEV Tile piece(const Args& p, u32 elem, u32 at) {
    u32 tiles = tiles_of<BM>(p), steps = steps_of(p, elem), end = (u32)share((u64)tiles * steps, blockIdx.x + 1, gridDim.x);
    Tile t = tile_at<BM>(p, at / steps, tiles);
    t.first_step = at % steps;
    t.end_step = end - at < steps - t.first_step ? t.first_step + end - at : steps;
    return t;
}

template <u32 BM, class Type> DEV void stream(const Args& p) {
    extern __shared__ __align__(128) u8 shared[];
    u64 total = (u64)tiles_of<BM>(p) * steps_of(p, Type::ELEM);
    u32 at = (u32)share(total, blockIdx.x, gridDim.x);
#pragma unroll 1
    while (at < (u32)share(total, blockIdx.x + 1, gridDim.x)) {
        multiply_tile<BM, 2, Type>(p, piece<BM>(p, Type::ELEM, at), shared);
        // Computed anew: the registers are the sums'.
        asm volatile("" : "+r"(at));
        Tile t = piece<BM>(p, Type::ELEM, at);
        if (t.first_step == 0 && t.end_step == steps_of(p, Type::ELEM)) {
            finish_tile<BM>(p, t, (const float*)shared);
        } else {
            bool second = at != (u32)share(total, blockIdx.x, gridDim.x);
            float* part = (float*)p.scratch + ((u64)blockIdx.x * 2 + second) * BM * BN;
            for (u32 e = threadIdx.x * 4; e < BM * BN; e += THREADS * 4) *(U4*)(part + e) = *(const U4*)((const float*)shared + e);
        }
        __syncthreads();
        at += t.end_step - t.first_step;
    }
}

// A block for each tile; `splits` are the blocks that had the shares.
template <u32 BM> DEV void sum(const Args& p) {
    u32 tiles = tiles_of<BM>(p), steps = steps_of(p, p.x.type == F32 ? 4 : 2);
    u64 total = (u64)tiles * steps, begin = (u64)blockIdx.x * steps, first = begin * p.splits / total;
    while (share(total, first + 1, p.splits) <= begin) first++;
    if (share(total, first + 1, p.splits) >= begin + steps) return; // it had the whole
    u64 last = first + 1; // behind the last
    while (last < p.splits && share(total, last, p.splits) < begin + steps) last++;
    bool second = share(total, first, p.splits) < begin; // of the parts of the first block; those of others are their first
    Tile t = tile_at<BM>(p, blockIdx.x, tiles);
    Place to = place_of(p, 0);
#pragma unroll 1
    for (u32 e = threadIdx.x; e < BM * BN; e += THREADS) {
        u64 i = t.rows.first + e / BN, j = t.first_j + e % BN;
        if (i >= t.rows.end || j >= p.n) continue;
        const float* part = (const float*)p.scratch + sum_place(e / BN, e % BN);
        float y = part[(first * 2 + second) * BM * BN];
        for (u64 b = first + 1; b < last; b++) y += part[b * 2 * BM * BN];
        finish(p, to, i, j, y, 0.0f);
    }
}

#define STREAM(name, Type)                                                                                                        \
    KERNEL void __launch_bounds__(THREADS, 2) name##_stream_128(const __grid_constant__ Args p) {                                 \
        stream<128, Type>(p);                                                                                                     \
    }                                                                                                                             \
    KERNEL void __launch_bounds__(THREADS, 2) name##_stream_64(const __grid_constant__ Args p) {                                  \
        stream<64, Type>(p);                                                                                                      \
    }
STREAM(bf16, Bf16)
STREAM(f16, Half)
STREAM(tf32, Tf32)

KERNEL void __launch_bounds__(THREADS) sum_128(const __grid_constant__ Args p) {
    sum<128>(p);
}
KERNEL void __launch_bounds__(THREADS) sum_64(const __grid_constant__ Args p) {
    sum<64>(p);
}
