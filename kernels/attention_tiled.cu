// Attention of many query rows on tensor cores: a block has 64 rows of a head, a warp 16 of them, and walks over the keys 64 at a time
// with a running maximum and sum per row (FlashAttention-2's order of work). Rows of q stay in registers as fragments; k and v have
// one buffer each, so that the next keys arrive while the scores are turned into weights, and the values while the scores are made.
//
//     k, v in shared memory: 64 rows of D elements in chunks of 16 bytes, chunk c of row r at place c ^ (r % 8): no bank conflicts
//     scores of a warp: 16 x 64, weights are the next product's left fragments as they lie in registers
//
// `fast` rounds the weights to q's type; otherwise three products of ever smaller parts keep 24 bits of them. Heads of up to D
// elements, a multiple of 8; what lies beyond is filled with zeros. Floor: 4 rows keys d flops (half of it when causal) over
// the rate of mma.sync; at 64 rows a block k and v are read from cache rows / 64 times. Estimate on an H200 from
// others' kernels of this shape: 300 - 350 TFLOP/s `fast`. Run in the PTX interpreter and assembled; not measured on a GPU.
// Promised instructions: HMMA, LDGSTS, LDSM.
// Target: sm_80.
#include "types.cuh"
#include "attention.cuh"
#include "mma.cuh"

#define ROWS 64
#define KEYS 64
#define THREADS 128

// As `load_matrices`, each matrix transposed.
DEV void load_transposed(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

template <class Elem> DEV u32 packed(float low, float high);
template <> DEV u32 packed<Bf16>(float low, float high) {
    return pack_bf16(low, high);
}
template <> DEV u32 packed<Half>(float low, float high) {
    return pack_f16(low, high);
}
// What packing lost of both.
template <class Elem> DEV void keep_rest(u32 pair, float& low, float& high);
template <> DEV void keep_rest<Bf16>(u32 pair, float& low, float& high) {
    low -= __uint_as_float(pair << 16);
    high -= __uint_as_float(pair & 0xffff0000u);
}
template <> DEV void keep_rest<Half>(u32 pair, float& low, float& high) {
    low -= f16_decode((u16)pair);
    high -= f16_decode((u16)(pair >> 16));
}

template <int D> DEV u32 place(u32 tile, u32 row, u32 chunk) {
    return tile + row * D * 2 + ((chunk ^ (row & 7)) << 4);
}

// Rows `first ..` of t at `at` (in elements) into a tile, zeros from row `end` and element `d` on.
template <int D> DEV void fetch(u32 tile, const Tensor& t, i64 at, i64 first, i64 end, u32 d) {
    const u16* data = (const u16*)t.data;
    if (((u64)t.data & 15) != 0) {
#pragma unroll 1
        for (u32 i = threadIdx.x; i < 64 * D / 2; i += THREADS) {
            u32 row = i / (D / 2), pair = i % (D / 2), value = 0;
            const u16* from = data + at + (first + row) * t.stride[2] + pair * 2;
            if (first + row < end && pair * 2 < d) value = from[0] | (u32)from[1] << 16;
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(place<D>(tile, row, pair / 4) + pair % 4 * 4), "r"(value) : "memory");
        }
        return;
    }
#pragma unroll 4
    for (u32 i = threadIdx.x; i < 64 * D / 8; i += THREADS) {
        u32 row = i / (D / 8), chunk = i % (D / 8);
        bool inside = first + row < end && chunk * 8 < d;
        const u16* from = inside ? data + at + (first + row) * t.stride[2] + chunk * 8 : data;
        copy_async(place<D>(tile, row, chunk), from, inside);
    }
}

template <class Elem, int D, int PARTS> DEV void attention_tiled(const AttentionArgs& p) {
    __shared__ __align__(128) u8 shared[2 * KEYS * D * 2]; // at the end 64 rows of D sums
    u32 ks = shared_address(shared), vs = ks + KEYS * D * 2;
    u32 tiles = (u32)(p.q_rows + ROWS - 1) / ROWS, heads = (u32)p.heads;
    // The last rows of a causal head see most keys: they come first.
    u32 tile = tiles - 1 - blockIdx.x % tiles, head = blockIdx.x / tiles % heads, b = blockIdx.x / tiles / heads;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv_head = head / (u32)p.group;
    i64 first = (i64)tile * ROWS, last = first + ROWS < (i64)p.q_rows ? first + ROWS - 1 : (i64)p.q_rows - 1;

    fetch<D>(ks, p.q, b * p.q.stride[3] + head * p.q.stride[1], first, p.q_rows, (u32)p.d);
    copies_end();
    copies_wait<0>();
    __syncthreads();
    u32 q[D / 16][4];
#pragma unroll
    for (u32 k = 0; k < D / 16; k++) load_matrices(q[k], place<D>(ks, warp * 16 + lane % 16, k * 2 + lane / 16));
    __syncthreads();

    // This thread's two rows, and the keys that any row of the block sees: of the valid ones the first sees the first, the last the last.
    Row rows[2];
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        i64 i = first + warp * 16 + lane / 4 + 8 * r;
        rows[r] = row_of<true>(p, i <= last ? i : last, b);
        if (i > last) rows[r].absent = true;
    }
    Row low = row_of<true>(p, first, b), high = low;
    if (!low.absent) {
        i64 valid = p.q_len.data ? clamped(load_index(p.q_len, b * p.q_len.stride[0]), 0, p.q_rows) : (i64)p.q_rows;
        high = row_of<true>(p, last < valid ? last : valid - 1, b);
    }
    i64 start = low.start / KEYS * KEYS, end = high.end;
    float uncap = 1.0f / p.softcap;
    float slope = p.alibi.data ? load_float(p.alibi, head * p.alibi.stride[0]) : 0.0f;

    float o[D / 8][4] = {}, largest[2] = {-INFINITE, -INFINITE}, sum[2] = {};
    i64 k_at = b * p.k.stride[3] + kv_head * p.k.stride[1], v_at = b * p.v.stride[3] + kv_head * p.v.stride[1];
    if (start < end) fetch<D>(ks, p.k, k_at, start, end, (u32)p.d);
    copies_end();
#pragma unroll 1
    for (i64 n = start; n < end; n += KEYS) {
        copies_wait<0>();
        __syncthreads(); // these keys are here, and the values before are done with
        fetch<D>(vs, p.v, v_at, n, end, (u32)p.dv);
        copies_end();
        float s[KEYS / 8][4] = {};
#pragma unroll
        for (u32 k = 0; k < D / 16; k++) {
#pragma unroll
            for (u32 c = 0; c < KEYS / 8; c += 2) {
                u32 f[4];
                load_matrices(f, place<D>(ks, c * 8 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
                Elem::mma(s[c], q[k], f[0], f[1]);
                Elem::mma(s[c + 1], q[k], f[2], f[3]);
            }
        }
        __syncthreads(); // the keys are done with
        if (n + KEYS < end) fetch<D>(ks, p.k, k_at, n + KEYS, end, (u32)p.d);
        copies_end();

        bool partial = n < high.start || n + KEYS > low.end;
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            float most = largest[r];
#pragma unroll
            for (u32 c = 0; c < KEYS / 8; c++) {
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    float& x = s[c][2 * r + e];
                    i64 j = n + c * 8 + lane % 4 * 2 + e;
                    x *= p.scale;
                    if (p.softcap != 0.0f) x = p.softcap * squashed(x * uncap);
                    if (p.alibi.data) x += slope * (float)(j - rows[r].position);
                    if (partial && (j < rows[r].start || j >= rows[r].end)) x = -INFINITE;
                    most = fmaxf(most, x);
                }
            }
            most = quad_max(most);
            // Nothing seen so far: a weight of exp(-inf - 0) is 0. A NaN stays in the weights, an infinite maximum makes one.
            float base = most == -INFINITE ? 0.0f : most, decay = exponential(largest[r] - base);
            largest[r] = most;
            sum[r] *= decay;
#pragma unroll
            for (u32 c = 0; c < KEYS / 8; c++) {
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    float& x = s[c][2 * r + e];
                    x = exponential(x - base);
                    sum[r] += x;
                }
            }
#pragma unroll
            for (u32 c = 0; c < D / 8; c++) {
                o[c][2 * r] *= decay;
                o[c][2 * r + 1] *= decay;
            }
        }
        copies_wait<1>();
        __syncthreads(); // the values are here
#pragma unroll
        for (u32 k = 0; k < KEYS / 16; k++) {
            u32 weights[PARTS][4];
#pragma unroll
            for (u32 part = 0; part < PARTS; part++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    float &x = s[2 * k + i / 2][i % 2 * 2], &y = s[2 * k + i / 2][i % 2 * 2 + 1];
                    weights[part][i] = packed<Elem>(x, y);
                    if (part + 1 < PARTS) keep_rest<Elem>(weights[part][i], x, y);
                }
            }
#pragma unroll
            for (u32 c = 0; c < D / 8; c += 2) {
                u32 f[4];
                load_transposed(f, place<D>(vs, k * 16 + lane % 16, c + lane / 16));
#pragma unroll
                for (u32 part = 0; part < PARTS; part++) {
                    Elem::mma(o[c], weights[part], f[0], f[1]);
                    Elem::mma(o[c + 1], weights[part], f[2], f[3]);
                }
            }
        }
    }
    copies_wait<0>();
    __syncthreads();

    float sink = p.sinks.data ? load_float(p.sinks, head * p.sinks.stride[0]) : -INFINITE;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        i64 i = first + warp * 16 + lane / 4 + 8 * r;
        float total = quad_sum(sum[r]);
        bool blind = rows[r].absent || (largest[r] == -INFINITE && !is_nan(total));
        bool spoiled = !blind && (is_nan(total) || !(sink < INFINITE));
        float top = fmaxf(largest[r], sink), decay = blind ? 0.0f : exponential(largest[r] - top);
        if (sink != -INFINITE) total = total * decay + exponential(sink - top);
        float scale = decay / total;
        float* to = (float*)shared + (warp * 16 + lane / 4 + 8 * r) * D + lane % 4 * 2;
#pragma unroll
        for (u32 c = 0; c < D / 8; c++) {
#pragma unroll
            for (u32 e = 0; e < 2; e++) to[c * 8 + e] = blind ? 0.0f : spoiled ? NOT_A_NUMBER : o[c][2 * r + e] * scale;
        }
        if (p.lse.data && lane % 4 == 0 && i <= last) {
            float lse = spoiled ? NOT_A_NUMBER : rows[r].absent ? -INFINITE : blind ? sink : top + logf(total);
            ((float*)p.lse.data)[rows[r].lse + head * p.lse.stride[1]] = lse;
        }
    }
    // A warp's own rows, by lines.
    __syncwarp();
    i64 out = b * p.out.stride[3] + head * p.out.stride[1];
#pragma unroll 1
    for (u32 i = lane; i < 16 * D; i += 32) {
        u32 row = warp * 16 + i / D, e = i % D;
        if (first + row <= last && e < p.dv) {
            store(p.out, out + (first + row) * p.out.stride[2] + e * p.out.stride[0], ((float*)shared)[row * D + e]);
        }
    }
}

#define ENTRY(name, elem, d, parts)                                                                                               \
    KERNEL void __launch_bounds__(THREADS, 2) name(const __grid_constant__ AttentionArgs p) {                                     \
        attention_tiled<elem, d, parts>(p);                                                                                       \
    }
ENTRY(bf16_64_fast, Bf16, 64, 1)
ENTRY(bf16_128_fast, Bf16, 128, 1)
ENTRY(f16_64_fast, Half, 64, 1)
ENTRY(f16_128_fast, Half, 128, 1)
ENTRY(bf16_64, Bf16, 64, 3)
ENTRY(bf16_128, Bf16, 128, 3)
ENTRY(f16_64, Half, 64, 3)
ENTRY(f16_128, Half, 128, 3)
