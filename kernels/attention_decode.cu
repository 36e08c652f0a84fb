// Attention of few query rows over long caches of 16 bits and of q8_0, on tensor cores: a block has one row, up to eight of the query heads
// that share a key head, and one of `splits` parts of the keys, so each key and value is read once for all of those heads. Each of its eight warps
// walks over every eighth 16 keys with a running maximum and sum, and has a ring of STAGES times 16 keys and values in shared memory, copied
// asynchronously two ahead: enough bytes are under way, and warps never wait for each other.
//
//     scores: heads x 16 keys, values: heads x D; the weights are the next product's left fragments as they lie in registers
//     16 bits: rows of D elements, chunk c of 16 bytes of row r at place c ^ (r % 8); q8_0: rows as they lie in the cache
//
// As exact as in f32: queries and weights are three parts of 16 bits each, of which the second and third are rows 8 .. 15. For f16 both are
// moved up by a power of two, so that no part lacks bits. Bytes of q8_0 become f16; what a block's scale multiplies is its sums of scores,
// and the weights of its values.
// Floor: the bytes of k and v over the bandwidth. Measured on an H200 with 32 heads on 8 and d = 128, f32 queries: bf16 and f16, 8k keys 22 us,
// 128k keys 133 us, 4.0 TB/s (a copy: 4.1); q8_0 28 and 182 us, 1.6 TB/s. Beside it attention_split.cu took 885 us for 128k keys of bf16,
// PyTorch's attention 133; the same rings on CUDA cores 307.
// Target: sm_80.
// Promised instructions: HMMA, LDGSTS, LDSM.
#include "types.cuh"
#include "attention.cuh"
#include "mma.cuh"
#include "split.cuh"

enum : u32 { WARPS = 8, STAGES = 3, KEYS = 16, PARTS = 3, HEADS = 8 };

// Types of parts; MOVED: up, for want of exponents.
struct Brain {
    enum : u32 { MOVED = 0 };
    typedef Bf16 Type;
    static DEV u32 pair(float low, float high) {
        return pack_bf16(low, high);
    }
    static DEV float low(u32 pair) {
        return __uint_as_float(pair << 16);
    }
    static DEV float high(u32 pair) {
        return __uint_as_float(pair & 0xffff0000u);
    }
};
struct HalfPrecision {
    enum : u32 { MOVED = 1 };
    typedef Half Type;
    static DEV u32 pair(float low, float high) {
        return pack_f16(low, high);
    }
    static DEV float low(u32 pair) {
        return f16_decode((u16)pair);
    }
    static DEV float high(u32 pair) {
        return f16_decode((u16)(pair >> 16));
    }
};
// Two numbers in parts; what is infinite has no rest.
template <class Elem> DEV void parts_of(float low, float high, u32 (&parts)[PARTS]) {
#pragma unroll
    for (u32 i = 0; i < PARTS; i++) {
        parts[i] = Elem::pair(low, high);
        low -= Elem::low(parts[i]);
        high -= Elem::high(parts[i]);
        low = is_nan(low) ? 0.0f : low;
        high = is_nan(high) ? 0.0f : high;
    }
}

// Sums of a left fragment in parts: rows 0 .. 7 of the first, rows 8 .. 15 of the others.
template <class Elem> DEV void multiply(float (&d)[4], const u32 (&a)[PARTS][2], u32 b0, u32 b1) {
    u32 most[4] = {a[0][0], a[1][0], a[0][1], a[1][1]}, least[4] = {0, a[2][0], 0, a[2][1]};
    Elem::Type::mma(d, most, b0, b1);
    Elem::Type::mma(d, least, b0, b1);
}

DEV void load_transposed(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
DEV u32 load_u16(u32 at) {
    u16 x;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(at) : "memory");
    return x;
}
// Two bytes of each half, as f16: offset by 128 the lowest bits of 1024.
DEV u32 halves_of(u32 bytes) {
    u32 r;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(r) : "r"(bytes | 0x64006400u), "r"(0x64806480u));
    return r;
}

// Rows of up to D elements of 16 bits.
template <class Type, int WIDTH> struct Plain {
    typedef Type Elem;
    enum : u32 { D = WIDTH, BYTES = D * 2, PIECE = 16, LANES = BYTES / PIECE, BLOCKS = 0 };
    static DEV i64 bytes(i64 elements) {
        return elements * 2;
    }
    // A piece of a row to a tile's line, zeros where that is not `seen`.
    static DEV void fetch(u32 tile, const u8* row, u32 d, u32 line, u32 piece, bool seen) {
        copy_async(tile + line * BYTES + ((piece ^ (line & 7)) << 4), row + piece * PIECE, seen && piece * 8 < d);
    }
    // Right fragments of both eights of keys, of elements k * 16 on.
    static DEV void keys(u32 (&f)[4], u32 tile, u32 k, u32 lane) {
        u32 line = lane % 8 + lane / 16 * 8;
        load_matrices(f, tile + line * BYTES + ((k * 2 + lane / 8 % 2) ^ (line & 7)) * 16);
    }
    static DEV u32 column(u32 j, u32 lane, u32 e) {
        return j * 8 + lane % 4 * 2 + e;
    }
};
// Rows of D elements in blocks of q8_0, copied by pieces of 8 or 4 bytes.
template <int WIDTH> struct Blocks {
    typedef HalfPrecision Elem;
    enum : u32 { D = WIDTH, BYTES = D / 32 * 34, PIECE = BYTES % 8 == 0 ? 8 : 4, LANES = 2, BLOCKS = 1 };
    static DEV i64 bytes(i64 elements) {
        return elements / 32 * 34;
    }
    static DEV void fetch(u32 tile, const u8* row, u32, u32 line, u32 piece, bool seen) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(tile + line * BYTES + piece * PIECE), "l"(row + piece * PIECE),
                     "r"(seen ? (u32)PIECE : 0),
                     "n"((int)PIECE)
                     : "memory");
    }
    // Of 16 elements a lane has four beside each other, as the queries' fragments do: which they are does not matter to a sum.
    static DEV void keys(u32 (&f)[4], u32 tile, u32 k, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 at = tile + (i * 8 + lane / 4) * BYTES + k / 2 * 34 + 2 + k % 2 * 16 + lane % 4 * 4;
#pragma unroll
            for (u32 e = 0; e < 2; e++) f[2 * i + e] = halves_of(__byte_perm(load_u16(at + 2 * e) ^ 0x8080u, 0, 0x4140));
        }
    }
    // The scale of a key's block.
    static DEV float scale(u32 tile, u32 line, u32 block) {
        return f16_decode((u16)load_u16(tile + line * BYTES + block * 34));
    }
    // Four columns of a block beside each other in a lane's products.
    static DEV u32 column(u32 j, u32 lane, u32 e) {
        return j / 4 * 32 + (lane % 4 * 2 + e) * 4 + j % 4;
    }
};

template <class Cache> DEV void decode(const SplitArgs& s) {
    typedef typename Cache::Elem Elem;
    enum : u32 { D = Cache::D, TILE = KEYS * Cache::BYTES, PIECES = Cache::BYTES / Cache::PIECE };
    const AttentionArgs& p = s.a;
    extern __shared__ __align__(128) u8 ring[];
    __shared__ float maxima[WARPS][HEADS], sums[WARPS][HEADS];
    u32 splits = (u32)s.splits, rows = (u32)p.q_rows;
    auto [split, whole_row, pack, kv_head, first, count] = share_of<HEADS>(s);
    Row r = row_of(p, whole_row % rows, whole_row / rows);
    i64 keys = r.end > r.start ? r.end - r.start : 0, span = ((keys + splits - 1) / splits + KEYS - 1) / KEYS * KEYS;
    i64 from = r.start + split * span, to = from + span < r.end ? from + span : r.end;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, base = shared_address(ring) + warp * STAGES * 2 * TILE;
    i64 k_head = kv_head * p.k.stride[1], v_head = kv_head * p.v.stride[1];

    // LANES lanes copy a line, AT_ONCE lines at once. Rows that are not listed lie at even distances.
    enum : u32 { AT_ONCE = 32 / Cache::LANES };
    bool listed = p.key_mask.data || p.block_table.data;
    u32 mine = lane / Cache::LANES;
    i64 k_step = Cache::bytes(AT_ONCE * p.k.stride[2]), v_step = Cache::bytes(AT_ONCE * p.v.stride[2]);
    auto fetch = [&](i64 at, u32 stage) {
        u32 tile = base + stage * 2 * TILE, left = at >= to ? 0 : to - at < KEYS ? (u32)(to - at) : (u32)KEYS;
        auto copy = [&](u32 line, const u8* k, const u8* v, bool seen) {
            k = seen ? k : p.k.data;
            v = seen ? v : p.v.data;
#pragma unroll
            for (u32 piece = lane % Cache::LANES; piece < PIECES; piece += Cache::LANES) {
                Cache::fetch(tile, k, (u32)p.d, line, piece, seen);
                Cache::fetch(tile + TILE, v, (u32)p.dv, line, piece, seen);
            }
        };
        auto row = [&](const Tensor& t, i64 head) { return t.data + Cache::bytes(head); };
        i64 k = 0, v = 0;
        if (!listed) {
            if (mine < left) key_at(p, r, at + mine, &k, &v);
            const u8 *k_row = row(p.k, k + k_head), *v_row = row(p.v, v + v_head);
#pragma unroll
            for (u32 line = mine; line < KEYS; line += AT_ONCE) {
                copy(line, k_row, v_row, line < left);
                k_row += k_step;
                v_row += v_step;
            }
        } else {
#pragma unroll 1
            for (u32 line = mine; line < KEYS; line += AT_ONCE) {
                bool seen = line < left && key_at(p, r, at + line, &k, &v);
                copy(line, row(p.k, k + k_head), row(p.v, v + v_head), seen);
            }
        }
        copies_end();
    };
    i64 at = from + warp * KEYS;
#pragma unroll 1
    for (u32 i = 0; i + 1 < STAGES; i++) fetch(at + i * WARPS * KEYS, i);

    __shared__ float queries[HEADS][D];
#pragma unroll
    for (u32 i = threadIdx.x; i < HEADS * D; i += WARPS * 32) {
        u32 g = i / D, e = i % D;
        queries[g][e] = g < count && e < p.d ? load_float(p.q, r.q + (first + g) * p.q.stride[1] + e * p.q.stride[0]) : 0.0f;
    }
    __syncthreads();
    // Queries of head lane / 4: of 16 elements four, of which k, k + 1 and k + 8, k + 9 for plain rows.
    u32 head = lane / 4 < count ? first + lane / 4 : first;
    float loaded[D / 4], most = 0.0f;
#pragma unroll
    for (u32 i = 0; i < D / 4; i++) {
        u32 e = i / 4 * 16 + (Cache::BLOCKS ? lane % 4 * 4 + i % 4 : i % 4 / 2 * 8 + lane % 4 * 2 + i % 2);
        loaded[i] = queries[lane / 4][e];
        most = fmaxf(most, fabsf(loaded[i]));
    }
    float up = 1.0f, down = p.scale;
    if (Elem::MOVED) {
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        // The largest becomes 2^10 to 2^11, unless it is next to nothing or infinite.
        u32 exponent = __float_as_uint(most) >> 23;
        if (exponent > 20 && exponent < 255) {
            up = __uint_as_float((264 - exponent) << 23 & 0x7f800000u);
            down = p.scale * __uint_as_float((exponent - 10) << 23);
        }
    }
    u32 q[D / 16][PARTS][2];
#pragma unroll
    for (u32 k = 0; k < D / 16; k++) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 parts[PARTS];
            parts_of<Elem>(loaded[4 * k + 2 * h] * up, loaded[4 * k + 2 * h + 1] * up, parts);
#pragma unroll
            for (u32 i = 0; i < PARTS; i++) q[k][i][h] = parts[i];
        }
    }

    float o[D / 8][4] = {}, largest = -INFINITE, sum = 0.0f, uncap = 1.0f / p.softcap;
    float slope = p.alibi.data ? load_float(p.alibi, head * p.alibi.stride[0]) : 0.0f;
    u32 stage = 0;
#pragma unroll 1
    for (; at < to; at += WARPS * KEYS) {
        copies_wait<STAGES - 2>();
        __syncwarp();
        fetch(at + (STAGES - 1) * WARPS * KEYS, stage == 0 ? STAGES - 1 : stage - 1);
        u32 tile = base + stage * 2 * TILE;
        float x[2][4] = {};
#pragma unroll
        for (u32 k = 0; k < D / 16; k += 2) {
            float block[2][4] = {};
#pragma unroll
            for (u32 h = k; h < k + 2; h++) {
                u32 f[4];
                Cache::keys(f, tile, h, lane);
#pragma unroll
                for (u32 j = 0; j < 2; j++) multiply<Elem>(Cache::BLOCKS ? block[j] : x[j], q[h], f[2 * j], f[2 * j + 1]);
            }
            if constexpr (Cache::BLOCKS) {
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
#pragma unroll
                    for (u32 e = 0; e < 2; e++) x[j][e] += (block[j][e] + block[j][2 + e]) * Cache::scale(tile, j * 8 + lane % 4 * 2 + e, k / 2);
                }
            }
        }
        float next = largest;
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                float& y = x[j][e];
                i64 key = at + j * 8 + lane % 4 * 2 + e, k, v;
                bool seen = key < to && (!listed || key_at(p, r, key, &k, &v));
                if (fabsf(y) < INFINITE) y += x[j][2 + e]; // an infinite one comes from the first part alone
                y *= down;
                if (p.softcap != 0.0f) y = p.softcap * squashed(y * uncap);
                if (p.alibi.data) y += slope * (float)(key - r.position);
                if (p.mask.data && seen) {
                    float added = load_float(p.mask, r.mask + head * p.mask.stride[2] + key * p.mask.stride[0]);
                    y = added == -INFINITE ? added : y + added; // hidden, whatever the score
                }
                if (!seen) y = -INFINITE;
                next = fmaxf(next, y);
            }
        }
        next = fmaxf(next, __shfl_xor_sync(0xffffffffu, next, 1));
        next = fmaxf(next, __shfl_xor_sync(0xffffffffu, next, 2));
        float by = next == -INFINITE ? 0.0f : next, decay = exponential(largest - by);
        largest = next;
        sum *= decay;
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                x[j][e] = exponential(x[j][e] - by); // the weight: NaN for a score that is NaN or infinite
                sum += x[j][e];
            }
        }
        if (__ballot_sync(0xffffffffu, decay != 1.0f) != 0) {
#pragma unroll
            for (u32 j = 0; j < D / 8; j++) {
#pragma unroll
                for (u32 e = 0; e < 4; e++) o[j][e] *= decay;
            }
        }
        u32 weights[2][PARTS], w[PARTS][2];
        float raise = Elem::MOVED ? 4096.0f : 1.0f;
        if constexpr (!Cache::BLOCKS) {
#pragma unroll
            for (u32 j = 0; j < 2; j++) parts_of<Elem>(x[j][0] * raise, x[j][1] * raise, weights[j]);
#pragma unroll
            for (u32 i = 0; i < PARTS; i++) w[i][0] = weights[0][i], w[i][1] = weights[1][i];
#pragma unroll
            for (u32 j = 0; j < D / 8; j += 2) {
                u32 f[4], line = lane % 16;
                load_transposed(f, tile + TILE + line * Cache::BYTES + ((j + lane / 16) ^ (line & 7)) * 16);
                multiply<Elem>(o[j], w, f[0], f[1]);
                multiply<Elem>(o[j + 1], w, f[2], f[3]);
            }
        } else {
#pragma unroll
            for (u32 block = 0; block < D / 32; block++) {
                u32 bytes[4]; // of a lane's four keys, four columns
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    float scaled[2];
#pragma unroll
                    for (u32 e = 0; e < 2; e++) {
                        u32 line = j * 8 + lane % 4 * 2 + e, byte = tile + TILE + line * Cache::BYTES + block * 34 + 2 + lane / 4 * 4;
                        scaled[e] = x[j][e] * raise * Cache::scale(tile + TILE, line, block);
                        bytes[2 * j + e] = (load_u16(byte) | load_u16(byte + 2) << 16) ^ 0x80808080u;
                    }
                    parts_of<Elem>(scaled[0], scaled[1], weights[j]);
                }
#pragma unroll
                for (u32 i = 0; i < PARTS; i++) w[i][0] = weights[0][i], w[i][1] = weights[1][i];
#pragma unroll
                for (u32 c = 0; c < 4; c++) {
                    u32 low = halves_of(__byte_perm(bytes[0], bytes[1], 0x0400 + c * 0x0101) & 0x00ff00ffu);
                    u32 high = halves_of(__byte_perm(bytes[2], bytes[3], 0x0400 + c * 0x0101) & 0x00ff00ffu);
                    multiply<Elem>(o[block * 4 + c], w, low, high);
                }
            }
        }
        __syncwarp();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    copies_wait<0>();

    // The warps together.
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (lane % 4 == 0) {
        maxima[warp][lane / 4] = largest;
        sums[warp][lane / 4] = sum;
    }
    __syncthreads();
    float highest = -INFINITE, total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < WARPS; i++) highest = fmaxf(highest, maxima[i][lane / 4]);
    float by = highest == -INFINITE ? 0.0f : highest, scale = exponential(largest - by) * (Elem::MOVED ? 1.0f / 4096 : 1.0f);
#pragma unroll
    for (u32 i = 0; i < WARPS; i++) total += sums[i][lane / 4] * exponential(maxima[i][lane / 4] - by);
    float* values = (float*)ring; // of each warp and head
#pragma unroll
    for (u32 j = 0; j < D / 8; j++) {
#pragma unroll
        for (u32 e = 0; e < 2; e++) values[(warp * HEADS + lane / 4) * D + Cache::column(j, lane, e)] = (o[j][e] + o[j][2 + e]) * scale;
    }
    __syncthreads();
    if (warp == 0 && lane % 4 == 0 && lane / 4 < count) {
        float* top = top_of<D>(s, whole_row, head, split);
        top[0] = highest;
        top[1] = total;
    }
#pragma unroll 1
    for (u32 i = threadIdx.x; i < count * D; i += WARPS * 32) {
        float value = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) value += values[w * HEADS * D + i];
        values_of<D>(s, whole_row, first + i / D, split)[i % D] = value;
    }
    put_together<D>(s, r, whole_row, pack, first, count);
}

#define ENTRY(name, ...)                                                                                                          \
    KERNEL void __launch_bounds__(WARPS * 32, 1) name(const __grid_constant__ SplitArgs s) {                                      \
        decode<__VA_ARGS__>(s);                                                                                                   \
    }
ENTRY(decode_64_bf16, Plain<Brain, 64>)
ENTRY(decode_128_bf16, Plain<Brain, 128>)
ENTRY(decode_64_f16, Plain<HalfPrecision, 64>)
ENTRY(decode_128_f16, Plain<HalfPrecision, 128>)
ENTRY(decode_64_q8_0, Blocks<64>)
ENTRY(decode_128_q8_0, Blocks<128>)
