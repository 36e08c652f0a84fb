// Attention of many query rows in f32 throughout, over caches of every type, for what tensor cores decline: rows of q in f32, masks, hidden keys, pages;
// not the varlen form. A block has 64 rows of one head and walks over the keys 64 at a time with a running maximum and sum per row, as attention_tiled.cu
// does. 128 threads: each has 8 rows by 4 keys of the scores, and the same rows by D / 16 columns of the sums.
//
//     shared memory, in f32: q [D][64], k [D][64], then v [64][D] in k's place, weights [64 keys][64]; rows 4 longer, so that neighbours lie in other banks
//
// A hidden key's value is left out, not multiplied by 0: it may be infinite.
// Floor: 4 rows keys d flops (half of it when causal) over the rate of f32; per 8 x 4 scores and element 3 loads of 16 bytes for 32 multiply-adds. Estimate
// on an H200, whose peak is measured at 57 TFLOP/s: half of it, 2048 causal rows of 32 heads of 128 in 1.3 ms (attention.cu 58 ms). Run in the PTX
// interpreter and assembled; not measured on a GPU.
#include "types.cuh"
#include "activation.cuh"
#include "attention.cuh"
#include "heads.cuh"

enum : u32 { ROWS = 64, KEYS = 64, THREADS = 128, PITCH = 68 };

struct alignas(16) Float4 {
    float x[4];
};

// Over the 16 lanes that share rows.
DEV float half_warp_max(float v) {
#pragma unroll
    for (u32 step = 8; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}
DEV float half_warp_sum(float v) {
#pragma unroll
    for (u32 step = 8; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

// Adds a key's values by its weights; CHECKED: those of weight 0 are left out.
template <int D, bool CHECKED> DEV void weigh(float (&y)[8][D / 16], const float* kv, const float* ps, u32 key) {
    u32 own = threadIdx.x / 16 * 8, column = threadIdx.x % 16 * 4;
    Float4 w[2] = {*(const Float4*)(ps + key * PITCH + own), *(const Float4*)(ps + key * PITCH + own + 4)};
#pragma unroll
    for (u32 c = 0; c < D / 16; c += 4) {
        Float4 v = *(const Float4*)(kv + key * (D + 4) + c * 16 + column);
#pragma unroll
        for (u32 r = 0; r < 8; r++) {
            float weight = w[r / 4].x[r % 4];
#pragma unroll
            for (u32 u = 0; u < 4; u++) {
                if (!CHECKED || weight != 0.0f) y[r][c + u] += weight * v.x[u];
            }
        }
    }
}

template <int D> DEV void attention_exact(const AttentionArgs& p) {
    enum { C = D / 16, WIDE = D + 4 }; // columns of a thread
    extern __shared__ __align__(16) float memory[];
    __shared__ i64 k_at[KEYS], v_at[KEYS]; // -1: hidden
    __shared__ Row rows[ROWS];
    float *qs = memory, *kv = qs + D * PITCH, *ps = kv + (D * PITCH > KEYS * WIDE ? D * PITCH : KEYS * WIDE);
    u32 tiles = (u32)(p.q_rows + ROWS - 1) / ROWS, heads = (u32)p.heads;
    // The last rows of a causal head see most keys: they come first.
    u32 tile = tiles - 1 - blockIdx.x % tiles, head = blockIdx.x / tiles % heads, b = blockIdx.x / tiles / heads, kv_head = head / (u32)p.group;
    u32 first = tile * ROWS, count = (u32)p.q_rows - first < ROWS ? (u32)p.q_rows - first : ROWS;
    u32 own = threadIdx.x / 16 * 8, column = threadIdx.x % 16;
    if (threadIdx.x < ROWS) {
        Row r = row_of(p, first + (threadIdx.x < count ? threadIdx.x : 0), b);
        if (threadIdx.x >= count) r.absent = true, r.end = 0;
        rows[threadIdx.x] = r;
    }
    __syncthreads();
#pragma unroll 1
    for (u32 i = threadIdx.x; i < ROWS * D; i += THREADS) {
        u32 row = i % ROWS, e = i / ROWS;
        bool there = row < count && e < p.d;
        qs[e * PITCH + row] = there ? load_float(p.q, rows[row].q + head * p.q.stride[1] + e * p.q.stride[0]) : 0.0f;
    }
    // The keys that any row of the block sees.
    i64 start = p.capacity, end = 0;
#pragma unroll 1
    for (u32 row = 0; row < count; row++) {
        if (rows[row].end <= rows[row].start) continue;
        if (rows[row].start < start) start = rows[row].start;
        if (rows[row].end > end) end = rows[row].end;
    }
    start = start / KEYS * KEYS;
    bool whole_k = ((u64)p.k.data & 15) == 0, whole_v = ((u64)p.v.data & 15) == 0;
    float slope = p.alibi.data ? load_float(p.alibi, head * p.alibi.stride[0]) : 0.0f, uncap = 1.0f / p.softcap;
    float y[8][C] = {}, largest[8], sum[8] = {};
#pragma unroll
    for (u32 r = 0; r < 8; r++) largest[r] = -INFINITE;

#pragma unroll 1
    for (i64 n = start; n < end; n += KEYS) {
        if (threadIdx.x < KEYS) {
            i64 k = -1, v = -1;
            if (n + threadIdx.x >= end || !key_at(p, rows[0], n + threadIdx.x, &k, &v)) k = -1;
            k_at[threadIdx.x] = k;
            v_at[threadIdx.x] = v;
        }
        __syncthreads(); // and the values before are done with
#pragma unroll 1
        for (u32 i = threadIdx.x; i < KEYS * D / 8; i += THREADS) {
            u32 key = i % KEYS, e = i / KEYS * 8;
            float x[8] = {};
            if (k_at[key] >= 0 && e < p.d) load_eight(p.k, k_at[key] + kv_head * p.k.stride[1] + e, whole_k, x);
#pragma unroll
            for (u32 u = 0; u < 8; u++) kv[(e + u) * PITCH + key] = x[u];
        }
        __syncthreads();
        float s[8][4] = {};
#pragma unroll 4
        for (u32 e = 0; e < D; e++) {
            Float4 a[2] = {*(const Float4*)(qs + e * PITCH + own), *(const Float4*)(qs + e * PITCH + own + 4)}, k = *(const Float4*)(kv + e * PITCH + column * 4);
#pragma unroll
            for (u32 r = 0; r < 8; r++) {
#pragma unroll
                for (u32 c = 0; c < 4; c++) s[r][c] += a[r / 4].x[r % 4] * k.x[c];
            }
        }
        __syncthreads(); // the keys are done with
#pragma unroll 1
        for (u32 i = threadIdx.x; i < KEYS * D / 8; i += THREADS) {
            u32 key = i / (D / 8), e = i % (D / 8) * 8;
            float x[8] = {};
            if (k_at[key] >= 0 && e < p.dv) load_eight(p.v, v_at[key] + kv_head * p.v.stride[1] + e, whole_v, x);
#pragma unroll
            for (u32 u = 0; u < 8; u += 4) *(Float4*)(kv + key * WIDE + e + u) = {x[u], x[u + 1], x[u + 2], x[u + 3]};
        }
        bool hidden = false; // some key from some row of the warp
#pragma unroll
        for (u32 r = 0; r < 8; r++) {
            const Row& row = rows[own + r];
            float most = largest[r];
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                float& x = s[r][c];
                i64 j = n + column * 4 + c;
                bool seen = j >= row.start && j < row.end && k_at[column * 4 + c] >= 0;
                x *= p.scale;
                if (p.softcap != 0.0f) x = p.softcap * tanhf(x * uncap);
                if (p.alibi.data) x += slope * (float)(j - row.position);
                if (p.mask.data && seen) {
                    float added = load_float(p.mask, row.mask + head * p.mask.stride[2] + j * p.mask.stride[0]);
                    x = added == -INFINITE ? added : x + added; // hidden, whatever the score
                }
                if (!seen) x = -INFINITE;
                if (x == -INFINITE) hidden = true;
                most = fmaxf(most, x);
            }
            most = half_warp_max(most);
            // Nothing seen so far: a weight of exp(-inf - 0) is 0. A NaN stays in the weights, an infinite maximum makes one.
            float base = most == -INFINITE ? 0.0f : most, decay = expf(largest[r] - base);
            largest[r] = most;
            sum[r] *= decay;
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                float& x = s[r][c];
                x = x == -INFINITE ? 0.0f : expf(x - base);
                sum[r] += x;
            }
#pragma unroll
            for (u32 c = 0; c < C; c++) y[r][c] *= decay;
        }
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
#pragma unroll
            for (u32 r = 0; r < 8; r += 4) {
                *(Float4*)(ps + (column * 4 + c) * PITCH + own + r) = {s[r][c], s[r + 1][c], s[r + 2][c], s[r + 3][c]};
            }
        }
        hidden = __ballot_sync(0xffffffffu, hidden) != 0;
        __syncthreads(); // the values and the weights are here
        if (hidden) {
#pragma unroll 1
            for (u32 key = 0; key < KEYS; key++) weigh<D, true>(y, kv, ps, key);
        } else {
#pragma unroll 4
            for (u32 key = 0; key < KEYS; key++) weigh<D, false>(y, kv, ps, key);
        }
    }

    float sink = p.sinks.data ? load_float(p.sinks, head * p.sinks.stride[0]) : -INFINITE;
#pragma unroll
    for (u32 r = 0; r < 8; r++) {
        const Row& row = rows[own + r];
        float total = half_warp_sum(sum[r]);
        if (own + r >= count) continue;
        bool blind = row.absent || (largest[r] == -INFINITE && !is_nan(total));
        bool spoiled = !blind && (is_nan(total) || !(sink < INFINITE));
        float top = fmaxf(largest[r], sink), decay = blind ? 0.0f : expf(largest[r] - top);
        if (sink != -INFINITE) total = total * decay + expf(sink - top);
#pragma unroll
        for (u32 c = 0; c < C; c++) {
            u32 e = c / 4 * 64 + column * 4 + c % 4;
            if (e >= p.dv) continue;
            float value = blind ? 0.0f : spoiled ? NOT_A_NUMBER : y[r][c] * decay / total;
            store(p.out, row.out + head * p.out.stride[1] + e * p.out.stride[0], value);
        }
        if (p.lse.data && column == 0) {
            float lse = spoiled ? NOT_A_NUMBER : row.absent ? -INFINITE : blind ? sink : top + logf(total);
            store(p.lse, row.lse + head * p.lse.stride[1], lse);
        }
    }
}

KERNEL void __launch_bounds__(THREADS, 2) exact_64(const __grid_constant__ AttentionArgs p) {
    attention_exact<64>(p);
}
KERNEL void __launch_bounds__(THREADS, 2) exact_128(const __grid_constant__ AttentionArgs p) {
    attention_exact<128>(p);
}
