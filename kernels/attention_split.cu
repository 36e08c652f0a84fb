// Attention of few query rows over long caches: a block has one row, up to G of the query heads that share a key head, and one of
// `splits` parts of the keys; so each key and value is read once for all of those heads, and a single sequence still fills the
// device. Eight lanes have a key: each some chunks of eight of its elements, in whole lines; sixteen keys go through a block at a
// time, each group of lanes with a running maximum and sum of its own. The parts' results lie in scratch memory, and
// the last block of a row to finish puts them together, in their order: reproducible.
//
// Floor: the bytes of k and v over the bandwidth. Few loads are under way at once: attention_decode.cu, for the commonest caches, is several times as
// fast. Run in the PTX interpreter and assembled.
#include "types.cuh"
#include "attention.cuh"
#include "heads.cuh"
#include "split.cuh"

#define THREADS 128
#define GROUPS 16

template <int D, int G> DEV void attention_split(const SplitArgs& s) {
    const AttentionArgs& p = s.a;
    __shared__ float q[G][D], maxima[GROUPS][G], sums[GROUPS][G], values[GROUPS][D];
    u32 splits = (u32)s.splits, rows = (u32)p.q_rows;
    auto [split, whole_row, pack, kv_head, first, count] = share_of<G>(s);
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
#pragma unroll
        for (int i = 0; i < GROUPS; i++) most = fmaxf(most, maxima[i][g]);
        float by = most == -INFINITE ? 0.0f : most;
#pragma unroll 1
        for (int i = 0; i < GROUPS; i++) total += sums[i][g] * exponential(maxima[i][g] - by);
        float *part = values_of<D>(s, whole_row, first + g, split), *top = top_of<D>(s, whole_row, first + g, split);
#pragma unroll 1
        for (u32 e = threadIdx.x; e < D; e += THREADS) {
            float value = 0.0f;
#pragma unroll 1
            for (int i = 0; i < GROUPS; i++) value += values[i][e] * exponential(maxima[i][g] - by);
            part[e] = value;
        }
        if (threadIdx.x == 0) {
            top[0] = most;
            top[1] = total;
        }
    }

    put_together<D>(s, r, whole_row, pack, first, count);
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
