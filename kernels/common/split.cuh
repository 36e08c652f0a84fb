// What kernels share that split a row's keys among blocks: where the parts' results lie, and how the last block of a row puts them together.
#pragma once

struct SplitArgs {
    AttentionArgs a;
    float* parts;      // [rows, heads, splits, D] weighted values, then [rows, heads, splits, 2] maxima and sums
    u32* arrived;      // [rows, packs of heads]: 0 between launches
    u64 splits, packs; // packs: of heads that a block has, in all heads of a row
};

// What a block has: a row, `count` of the heads of one key head from `first` on, G at most, and one of the parts of the keys.
struct Share {
    u32 split, row, pack, kv_head, first, count;
};
template <u32 G> DEV Share share_of(const SplitArgs& s) {
    u32 splits = (u32)s.splits, packs = (u32)s.packs, group = (u32)s.a.group;
    u32 pack = blockIdx.x / splits % packs, of_group = (group + G - 1) / G, kv_head = pack / of_group, first = pack % of_group * G;
    u32 count = group - first < G ? group - first : G;
    return {blockIdx.x % splits, blockIdx.x / splits / packs, pack, kv_head, first + kv_head * group, count};
}

// Of a row's head and one of its parts.
template <int D> DEV float* values_of(const SplitArgs& s, u32 row, u32 head, u32 split) {
    return s.parts + (((u64)row * s.a.heads + head) * s.splits + split) * D;
}
template <int D> DEV float* top_of(const SplitArgs& s, u32 row, u32 head, u32 split) {
    u64 rows = gridDim.x / s.splits / s.packs;
    return s.parts + rows * s.a.heads * s.splits * D + (((u64)row * s.a.heads + head) * s.splits + split) * 2;
}

// Past the first cache, which has nothing of other blocks' writes.
DEV float load_fresh(const float* p) {
    float x;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(p) : "memory");
    return x;
}
DEV float warp_max(float v) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

// The last block of a row's pack to arrive has all parts before it: a warp puts those of a head together, in their order.
template <int D> DEV void put_together(const SplitArgs& s, const Row& r, u32 whole_row, u32 pack, u32 first, u32 count) {
    const AttentionArgs& p = s.a;
    __threadfence();
    __syncthreads();
    __shared__ bool is_last;
    u32 splits = (u32)s.splits, warp = threadIdx.x / 32;
    u32* arrived = s.arrived + whole_row * s.packs + pack;
    if (threadIdx.x == 0) is_last = atomicAdd(arrived, 1) == splits - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    if (threadIdx.x == 0) *arrived = 0;
    u32 place = threadIdx.x % 32;
#pragma unroll 1
    for (u32 g = warp; g < count; g += blockDim.x / 32) {
        u32 head = first + g;
        const float *part = values_of<D>(s, whole_row, head, 0), *top = top_of<D>(s, whole_row, head, 0);
        // All loads of a turn are under way at once, those of the first before anything is known of the maxima.
        enum : u32 { TURN = D > 128 ? 8 : 16 };
        float weight[TURN], loaded[TURN][D / 32], value[D / 32] = {};
        auto load_turn = [&](u32 i) {
#pragma unroll
            for (u32 j = 0; j < TURN; j++) {
                u32 from = i + j < splits ? i + j : splits - 1;
                weight[j] = load_fresh(top + 2 * from);
#pragma unroll
                for (u32 e = 0; e < D / 32; e++) loaded[j][e] = load_fresh(part + (u64)from * D + e * 32 + place);
            }
        };
        float most = -INFINITE, total = 0.0f, mine = place < splits ? load_fresh(top + 2 * place) : -INFINITE;
        float sum = place < splits ? load_fresh(top + 2 * place + 1) : 0.0f;
        load_turn(0);
#pragma unroll 1
        for (u32 i = place; i < splits; i += 32) most = fmaxf(most, i == place ? mine : load_fresh(top + 2 * i));
        most = warp_max(most);
        float sink = p.sinks.data ? load_float(p.sinks, head * p.sinks.stride[0]) : -INFINITE;
        float highest = fmaxf(most, sink), by = highest == -INFINITE ? 0.0f : highest;
#pragma unroll 1
        for (u32 i = place; i < splits; i += 32) {
            total += i == place ? sum * exponential(mine - by) : load_fresh(top + 2 * i + 1) * exponential(load_fresh(top + 2 * i) - by);
        }
        total = warp_sum(total);
        bool blind = most == -INFINITE && !is_nan(total), spoiled = !blind && (is_nan(total) || !(sink < INFINITE));
        if (sink != -INFINITE) total += exponential(sink - by);
#pragma unroll 1
        for (u32 i = 0; i < splits; i += TURN) {
            if (i > 0) load_turn(i);
#pragma unroll
            for (u32 j = 0; j < TURN; j++) {
                float scale = i + j < splits ? exponential(weight[j] - by) : 0.0f;
#pragma unroll
                for (u32 e = 0; e < D / 32; e++) value[e] += i + j < splits ? loaded[j][e] * scale : 0.0f;
            }
        }
#pragma unroll
        for (u32 i = 0; i < D / 32; i++) {
            u32 e = i * 32 + place;
            float x = spoiled ? NOT_A_NUMBER : blind ? 0.0f : value[i] / total;
            if (e < p.dv) store(p.out, r.out + head * p.out.stride[1] + e * p.out.stride[0], x);
        }
        if (p.lse.data && place == 0) {
            float lse = spoiled ? NOT_A_NUMBER : r.absent ? -INFINITE : blind ? sink : highest + logf(total);
            ((float*)p.lse.data)[r.lse + head * p.lse.stride[1]] = lse;
        }
    }
}
