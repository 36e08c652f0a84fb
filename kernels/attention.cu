// Attention of every form, a block per query row and head: four warps take every fourth key each, the lanes of a warp the elements
// of a head; a running maximum and sum (online softmax), put together at the end. Traffic: k and v once per query head and row, from
// cache where rows share them: right for decoding and for what the tiled kernels decline. Run in the PTX interpreter
// and assembled; not measured on a GPU.
#include "types.cuh"
#include "activation.cuh"
#include "attention.cuh"

// An element of a cache.
DEV float load_cache(const Tensor& t, i64 i) {
    switch (t.type) {
        case F32: case F16: case BF16: return load_float(t, i);
        case F8E4M3: return f8e4m3_decode(t.data[i]);
        case F8E5M2: return f8e5m2_decode(t.data[i]);
        case Q8_0: return load_block(Q8_0, t.data, i);
        default: return load_block(Q4_0, t.data, i);
    }
}

#define WARPS 4

KERNEL void __launch_bounds__(32 * WARPS, 4) attention(const __grid_constant__ AttentionArgs p) {
    __shared__ float parts[WARPS][256], maxima[WARPS], sums[WARPS];
    u32 rows = (u32)p.q_rows, heads = (u32)p.heads, head = blockIdx.x / rows % heads;
    Row r = row_of(p, blockIdx.x % rows, blockIdx.x / rows / heads);
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    i64 out = r.out + head * p.out.stride[1];
    float q[8], y[8];
#pragma unroll
    for (u32 c = 0; c < 8; c++) {
        u64 e = lane + 32 * c;
        q[c] = e < p.d ? load_float(p.q, r.q + head * p.q.stride[1] + e * p.q.stride[0]) : 0.0f;
        y[c] = 0.0f;
    }
    i64 kv_head = head / (u32)p.group;
    float slope = p.alibi.data ? load_float(p.alibi, head * p.alibi.stride[0]) : 0.0f;
    float largest = -INFINITE, sum = 0.0f;
    bool spoiled = false;
#pragma unroll 1
    for (i64 j = r.start + warp; j < r.end; j += WARPS) {
        i64 k, v;
        if (!key_at(p, r, j, &k, &v)) continue;
        float dot = 0.0f;
#pragma unroll
        for (u32 c = 0; c < 8; c++) {
            u64 e = lane + 32 * c;
            if (e < p.d) dot += q[c] * load_cache(p.k, k + kv_head * p.k.stride[1] + e * p.k.stride[0]);
        }
        float score = warp_sum(dot) * p.scale;
        if (p.softcap != 0.0f) score = p.softcap * tanhf(score / p.softcap);
        score += slope * (float)(j - r.position);
        if (p.mask.data) {
            float added = load_float(p.mask, r.mask + head * p.mask.stride[2] + j * p.mask.stride[0]);
            score = added == -INFINITE ? added : score + added; // hidden, whatever the score
        }
        if (score == -INFINITE) continue;
        spoiled = spoiled || !(score < INFINITE);
        float next = fmaxf(largest, score), decay = expf(largest - next), weight = expf(score - next);
        largest = next;
        sum = sum * decay + weight;
#pragma unroll
        for (u32 c = 0; c < 8; c++) {
            u64 e = lane + 32 * c;
            if (e < p.dv) y[c] = y[c] * decay + weight * load_cache(p.v, v + kv_head * p.v.stride[1] + e * p.v.stride[0]);
        }
    }
    if (spoiled) largest = NOT_A_NUMBER;
#pragma unroll
    for (u32 c = 0; c < 8; c++) parts[warp][lane + 32 * c] = y[c];
    if (lane == 0) {
        maxima[warp] = largest;
        sums[warp] = sum;
    }
    __syncthreads();
    float most = -INFINITE;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
        spoiled = spoiled || is_nan(maxima[w]);
        most = fmaxf(most, maxima[w]);
    }
    bool blind = most == -INFINITE && !spoiled;
    float sink = p.sinks.data ? load_float(p.sinks, head * p.sinks.stride[0]) : -INFINITE;
    spoiled = spoiled || (!blind && !(sink < INFINITE));
    float top = fmaxf(most, sink), total = sink == -INFINITE ? 0.0f : expf(sink - top), factor[WARPS];
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
        factor[w] = maxima[w] == -INFINITE ? 0.0f : expf(maxima[w] - top);
        total += factor[w] * sums[w];
    }
#pragma unroll 1
    for (u64 e = threadIdx.x; e < p.dv; e += 32 * WARPS) {
        float value = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) value += factor[w] * parts[w][e];
        store(p.out, out + e * p.out.stride[0], spoiled ? NOT_A_NUMBER : blind ? 0.0f : value / total);
    }
    if (p.lse.data && threadIdx.x == 0) {
        float lse = spoiled ? NOT_A_NUMBER : blind ? sink : top + logf(total);
        store(p.lse, r.lse + head * p.lse.stride[1], r.absent ? -INFINITE : lse);
    }
}
