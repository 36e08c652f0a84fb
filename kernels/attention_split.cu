// Attention of few query rows over long caches: a block has one row, up to G of the query heads that share a key head, and one of
// `splits` parts of the keys; so each key and value is read once for all of those heads, and a single sequence still fills the
// device. Eight lanes have a key: each some chunks of eight of its elements, in whole lines; sixteen keys go through a block at a
// time, each group of lanes with a running maximum and sum of its own. The parts' results lie in scratch memory, and
// the last block of a row to finish puts them together, in their order: reproducible.
//
// Floor: the bytes of k and v over the bandwidth. Estimate on an H200: 32 heads on 8, d = 128, bf16, 32k keys: 134 MB, 31 us at
// 4.3 TB/s. Run in the PTX interpreter and assembled; not measured on a GPU.
// Target: sm_80.
#include "types.cuh"
#include "attention.cuh"

#define THREADS 128
#define GROUPS 16

struct SplitArgs {
    AttentionArgs a;
    float* parts;  // [rows, heads, splits, 2 + D]: maximum, sum, weighted values
    u32* arrived;  // [rows, packs of heads]: 0 between launches
    u64 splits, packs; // packs: of G heads, in all heads of a row
};

// Eight elements from a multiple of eight on; `whole`: the tensor begins at a multiple of 16 bytes.
DEV void load_eight(const Tensor& t, i64 i, bool whole, float (&x)[8]) {
    switch (t.type) {
        case F32: {
#pragma unroll
            for (int e = 0; e < 8; e++) x[e] = ((const float*)t.data)[i + e];
            break;
        }
        case F16: case BF16: {
            const u16* data = (const u16*)t.data + i;
            u32 pair[4];
            if (whole) {
                asm("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(pair[0]), "=r"(pair[1]), "=r"(pair[2]), "=r"(pair[3]) : "l"(data));
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++) pair[e] = data[2 * e] | (u32)data[2 * e + 1] << 16;
            }
            bool half = t.type == F16;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                x[2 * e] = half ? f16_decode((u16)pair[e]) : __uint_as_float(pair[e] << 16);
                x[2 * e + 1] = half ? f16_decode((u16)(pair[e] >> 16)) : __uint_as_float(pair[e] & 0xffff0000u);
            }
            break;
        }
        case F8E4M3: case F8E5M2: {
#pragma unroll
            for (int e = 0; e < 8; e++) x[e] = t.type == F8E4M3 ? f8e4m3_decode(t.data[i + e]) : f8e5m2_decode(t.data[i + e]);
            break;
        }
        default: {
#pragma unroll
            for (int half = 0; half < 8; half += 4) {
                Four four;
                if (t.type == Q8_0) four = load_blocks(Q8_0, t.data, i + half);
                else four = load_blocks(Q4_0, t.data, i + half);
#pragma unroll
                for (int e = 0; e < 4; e++) x[half + e] = four.x[e];
            }
        }
    }
}

template <int D, int G> DEV void attention_split(const SplitArgs& s) {
    const AttentionArgs& p = s.a;
    __shared__ float q[G][D], maxima[GROUPS][G], sums[GROUPS][G], values[GROUPS][D];
    __shared__ bool is_last;
    u32 splits = (u32)s.splits, packs = (u32)s.packs, rows = (u32)p.q_rows, heads = (u32)p.heads, group = (u32)p.group;
    u32 split = blockIdx.x % splits, whole_row = blockIdx.x / splits / packs, pack = blockIdx.x / splits % packs;
    // A pack is part of the heads of one key head.
    u32 of_group = (group + G - 1) / G, kv_head = pack / of_group, first = pack % of_group * G;
    u32 count = group - first < G ? group - first : G;
    first += kv_head * group;
    Row r = row_of(p, whole_row % rows, whole_row / rows);
    i64 keys = r.end > r.start ? r.end - r.start : 0, span = (keys / splits + GROUPS) / GROUPS * GROUPS;
    i64 from = r.start + split * span, to = from + span < r.end ? from + span : r.end;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < G * D; i += THREADS) {
        u32 g = i / D, e = i % D;
        q[g][e] = g < count && e < p.d ? p.scale * load_float(p.q, r.q + (first + g) * p.q.stride[1] + e * p.q.stride[0]) : 0.0f;
    }
    __syncthreads();
    u32 lane = threadIdx.x % 8, mine = threadIdx.x / 8;
    float uncap = 1.0f / p.softcap;
    bool whole_k = ((u64)p.k.data & 15) == 0, whole_v = ((u64)p.v.data & 15) == 0;
    float y[G][D / 8] = {}, largest[G], sum[G] = {};
#pragma unroll
    for (int g = 0; g < G; g++) largest[g] = -INFINITE;
#pragma unroll 1
    for (i64 base = from; base < to; base += GROUPS) {
        i64 j = base + mine, k, v;
        bool seen = j < to && key_at(p, r, j, &k, &v);
        float score[G] = {}, decay[G];
#pragma unroll 1
        for (int c = 0; c < D / 64; c++) {
            u32 e = (c * 8 + lane) * 8;
            if (!seen || e >= p.d) continue;
            float x[8];
            load_eight(p.k, k + kv_head * p.k.stride[1] + e, whole_k, x);
#pragma unroll
            for (int g = 0; g < G; g++) {
#pragma unroll
                for (int i = 0; i < 8; i++) score[g] += x[i] * q[g][e + i];
            }
        }
#pragma unroll
        for (int g = 0; g < G; g++) {
            float& x = score[g];
#pragma unroll
            for (int step = 4; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
            u32 head = g < (int)count ? first + g : first;
            if (p.softcap != 0.0f) x = p.softcap * squashed(x * uncap);
            if (p.alibi.data) x += load_float(p.alibi, head * p.alibi.stride[0]) * (float)(j - r.position);
            if (p.mask.data && seen) {
                float added = load_float(p.mask, r.mask + head * p.mask.stride[2] + j * p.mask.stride[0]);
                x = added == -INFINITE ? added : x + added; // hidden, whatever the score
            }
            if (!seen) x = -INFINITE;
            float next = fmaxf(largest[g], x), by = next == -INFINITE ? 0.0f : next;
            decay[g] = exponential(largest[g] - by);
            largest[g] = next;
            x = exponential(x - by); // the weight: NaN for a score that is NaN or infinite
            sum[g] = sum[g] * decay[g] + x;
        }
#pragma unroll
        for (int c = 0; c < D / 64; c++) {
            u32 e = (c * 8 + lane) * 8;
            float x[8] = {};
            if (seen && e < p.dv) load_eight(p.v, v + kv_head * p.v.stride[1] + e, whole_v, x);
#pragma unroll
            for (int g = 0; g < G; g++) {
#pragma unroll
                for (int i = 0; i < 8; i++) y[g][c * 8 + i] = y[g][c * 8 + i] * decay[g] + score[g] * x[i];
            }
        }
    }

    // The groups of lanes together.
#pragma unroll
    for (int g = 0; g < G; g++) {
        if (lane == 0) {
            maxima[mine][g] = largest[g];
            sums[mine][g] = sum[g];
        }
    }
    u64 place = ((u64)whole_row * heads + first) * splits + split;
#pragma unroll
    for (int g = 0; g < G; g++) {
        __syncthreads();
#pragma unroll
        for (int c = 0; c < D / 64; c++) {
#pragma unroll
            for (int i = 0; i < 8; i++) values[mine][(c * 8 + lane) * 8 + i] = y[g][c * 8 + i];
        }
        __syncthreads();
        if (g >= (int)count) continue;
        float most = -INFINITE, total = 0.0f;
#pragma unroll 1
        for (int i = 0; i < GROUPS; i++) most = fmaxf(most, maxima[i][g]);
        float by = most == -INFINITE ? 0.0f : most;
#pragma unroll 1
        for (int i = 0; i < GROUPS; i++) total += sums[i][g] * exponential(maxima[i][g] - by);
        float* part = s.parts + (place + (u64)g * splits) * (2 + D);
#pragma unroll 1
        for (u32 e = threadIdx.x; e < D; e += THREADS) {
            float value = 0.0f;
#pragma unroll 1
            for (int i = 0; i < GROUPS; i++) value += values[i][e] * exponential(maxima[i][g] - by);
            part[2 + e] = value;
        }
        if (threadIdx.x == 0) {
            part[0] = most;
            part[1] = total;
        }
    }

    // The last block to arrive has all parts before it.
    __threadfence();
    __syncthreads();
    u32* arrived = s.arrived + whole_row * packs + pack;
    if (threadIdx.x == 0) is_last = atomicAdd(arrived, 1) == splits - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    if (threadIdx.x == 0) *arrived = 0;
#pragma unroll 1
    for (u32 g = 0; g < count; g++) {
        u32 head = first + g;
        const volatile float* part = s.parts + ((u64)whole_row * heads + head) * splits * (2 + D);
        float most = -INFINITE, total = 0.0f;
#pragma unroll 1
        for (u32 i = 0; i < splits; i++) most = fmaxf(most, part[i * (2 + D)]);
        float sink = p.sinks.data ? load_float(p.sinks, head * p.sinks.stride[0]) : -INFINITE;
        float top = fmaxf(most, sink), by = top == -INFINITE ? 0.0f : top;
#pragma unroll 1
        for (u32 i = 0; i < splits; i++) total += part[i * (2 + D) + 1] * exponential(part[i * (2 + D)] - by);
        bool blind = most == -INFINITE && !is_nan(total), spoiled = !blind && (is_nan(total) || !(sink < INFINITE));
        if (sink != -INFINITE) total += exponential(sink - by);
#pragma unroll 1
        for (u32 e = threadIdx.x; e < p.dv; e += THREADS) {
            float value = 0.0f;
#pragma unroll 1
            for (u32 i = 0; i < splits; i++) value += part[i * (2 + D) + 2 + e] * exponential(part[i * (2 + D)] - by);
            value = spoiled ? NOT_A_NUMBER : blind ? 0.0f : value / total;
            store(p.out, r.out + head * p.out.stride[1] + e * p.out.stride[0], value);
        }
        if (p.lse.data && threadIdx.x == 0) {
            float lse = spoiled ? NOT_A_NUMBER : r.absent ? -INFINITE : blind ? sink : top + logf(total);
            ((float*)p.lse.data)[r.lse + head * p.lse.stride[1]] = lse;
        }
    }
}

#define ENTRY(name, d, g)                                                                                                         \
    KERNEL void __launch_bounds__(THREADS, 2) name(const __grid_constant__ SplitArgs s) {                                         \
        attention_split<d, g>(s);                                                                                                 \
    }
ENTRY(split_64_1, 64, 1)
ENTRY(split_64_4, 64, 4)
ENTRY(split_128_1, 128, 1)
ENTRY(split_128_4, 128, 4)
ENTRY(split_256_1, 256, 1)
ENTRY(split_256_2, 256, 2)
