// Attention of many query rows on Hopper's tensor cores (wgmma), `fast` numerics, of bf16 and f16: for compute capability 9.0 alone.
// FlashAttention-3's order of work. A block has 128 rows of a head: one warpgroup copies (TMA), two multiply, 64 rows each; heads of up
// to 64 elements have 192 rows and three. Blocks stay, and take tiles of rows there and back, those that see most keys first.
//
//     shared memory: q, and two stages of keys and their values; halves of 64 elements, rows of 128 bytes, 128-byte swizzle
//     scores:  64 x 128 a warpgroup (96 of 64 elements), q and k from shared memory
//     values:  weights as they lie in registers, v from shared memory by its columns
//
// The scores of the next keys are multiplied before the values of these, so that the softmax of the next runs beside the values' products;
// and two warpgroups take turns to multiply: one's softmax runs beside the other's products. Sums are rescaled only where the
// maximum grew. Heads of up to D elements, a multiple of 8, are filled with zeros by the copies.
// Floor: 4 rows keys d flops (half of it when causal) over the rate of wgmma.
// Measured on an H200, bf16, causal, 16k tokens in all, in TFLOP/s, in turns with cuDNN (through PyTorch):
//
//     tokens                     2k         4k         8k        16k
//     32 heads on 8, d = 128     488 (490)  600 (582)  576 (545)  601 (534)
//     16 heads on 16, d = 128    426 (470)  542 (515)  609 (559)  608 (540)
//     32 heads on 8, d = 64      335 (377)  401 (422)  441 (446)  464 (471)
//
// FlashAttention-2 reaches 308 at 4k and 340 at 16k there. Tried and slower at 16k, where this loop reached 619 in that run: pairs of blocks that share keys
// (cluster, multicast) 431, no turns 536, 176 keys 588, q in registers 585 (at 2k 538 beside 515), rescaling only where the maximum grew by 2^8
// 597. Three warpgroups of 80 keys: 545 beside 571.
// Promised instructions: HGMMA, UTMALDG.
#include "types.cuh"
#include "attention.cuh"
#include "mma.cuh"
#include "hopper.cuh"

enum : u32 { STAGES = 2, ROW = 128 };

struct Args {
    AttentionArgs a;
    TensorMap q, k, v; // elements, rows, heads, sequences
};

#define TEN(d) "%" d "0,%" d "1,%" d "2,%" d "3,%" d "4,%" d "5,%" d "6,%" d "7,%" d "8,%" d "9,"
#define EIGHT(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define REGISTERS_32 TEN("") TEN("1") TEN("2") "%30,%31"
#define REGISTERS_48 TEN("") TEN("1") TEN("2") TEN("3") "%40,%41,%42,%43,%44,%45,%46,%47"
#define REGISTERS_64 TEN("") TEN("1") TEN("2") TEN("3") TEN("4") TEN("5") "%60,%61,%62,%63"
#define SUMS_32 EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24)
#define SUMS_48 SUMS_32, EIGHT(32), EIGHT(40)
#define SUMS_64 SUMS_48, EIGHT(48), EIGHT(56)
#define WGMMA "wgmma.mma_async.sync.aligned."

// 64 x 128 or 64 x 96 scores of 16 elements, added to d where `adds`; d is sums of 64 x 64 or 64 x 128 values, of weights of 16 keys.
#define PRODUCTS(name, types)                                                                                                     \
    struct name : name##Pair {                                                                                                    \
        static DEV void scores(float (&d)[64], u64 q, u64 k, u32 adds) {                                                          \
            asm volatile("{.reg .pred adds; setp.ne.u32 adds, %66, 0;" WGMMA "m64n128k16." types                                  \
                         " {" REGISTERS_64 "}, %64, %65, adds, 1, 1, 0, 0;}"                                                      \
                         : SUMS_64                                                                                                \
                         : "l"(q), "l"(k), "r"(adds));                                                                            \
        }                                                                                                                         \
        static DEV void scores(float (&d)[48], u64 q, u64 k, u32 adds) {                                                          \
            asm volatile("{.reg .pred adds; setp.ne.u32 adds, %50, 0;" WGMMA "m64n96k16." types                                   \
                         " {" REGISTERS_48 "}, %48, %49, adds, 1, 1, 0, 0;}"                                                      \
                         : SUMS_48                                                                                                \
                         : "l"(q), "l"(k), "r"(adds));                                                                            \
        }                                                                                                                         \
        static DEV void values(float (&d)[64], const u32* w, u64 v) {                                                             \
            asm volatile("{.reg .pred adds; setp.eq.u32 adds, 0, 0;" WGMMA "m64n128k16." types                                    \
                         " {" REGISTERS_64 "}, {%64,%65,%66,%67}, %68, adds, 1, 1, 1;}"                                           \
                         : SUMS_64                                                                                                \
                         : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(v));                                                   \
        }                                                                                                                         \
        static DEV void values(float (&d)[32], const u32* w, u64 v) {                                                             \
            asm volatile("{.reg .pred adds; setp.eq.u32 adds, 0, 0;" WGMMA "m64n64k16." types                                     \
                         " {" REGISTERS_32 "}, {%32,%33,%34,%35}, %36, adds, 1, 1, 1;}"                                           \
                         : SUMS_32                                                                                                \
                         : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(v));                                                   \
        }                                                                                                                         \
    };
struct Bf16sPair {
    static DEV u32 pair(float low, float high) {
        return pack_bf16(low, high);
    }
};
struct HalvesPair {
    static DEV u32 pair(float low, float high) {
        return pack_f16(low, high);
    }
};
PRODUCTS(Bf16s, "f32.bf16.bf16")
PRODUCTS(Halves, "f32.f16.f16")

// What is computed of these comes after what stands before, for the compiler.
DEV void settled(float (&d)[64]) {
    asm volatile("" : SUMS_64::"memory");
}
DEV void settled(float (&d)[48]) {
    asm volatile("" : SUMS_48::"memory");
}
DEV void settled(float (&d)[32]) {
    asm volatile("" : SUMS_32::"memory");
}
// A tile by its columns: 64 of them in a row of 128 bytes, the next 64 `next` bytes on.
DEV u64 transposed(u32 address, u32 next) {
    return descriptor(address) + ((u64)((next >> 4) - 1) << 16);
}

DEV float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A tile of rows of a head, the valid ones and the keys of its sequence, and the tiles of keys that any row sees.
struct Work {
    int first, head, b, count, keys, begin, tiles;
    int from_all, to_all; // those that every row sees wholly

    // `row_of` of the padded form in 32 bits.
    DEV int position(int i) const {
        return keys - count + i;
    }
    DEV int start(const AttentionArgs& p, int i) const {
        int window = p.window < 1 << 30 ? (int)p.window : 0, first = position(i) - window + 1;
        return window == 0 || first < 0 ? 0 : first < keys ? first : keys;
    }
    DEV int end(const AttentionArgs& p, int i) const {
        int window = p.window < 1 << 30 ? (int)p.window : 0;
        int after = p.causal ? position(i) + 1 : window > 0 ? position(i) + window : keys;
        return i >= count || after < 0 ? 0 : after < keys ? after : keys;
    }
};

// The tile of a round. Causal: those that see most keys come first, of all heads, and blocks take them there and back, so that each gets long and
// short ones; else head by head, which keeps its keys in cache.
template <class S> DEV Work work_of(const AttentionArgs& p, u32 round) {
    int unit = (int)(round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x)), heads = (int)(p.heads * p.batch);
    int tiles = ((int)p.q_rows + (int)S::ROWS - 1) / (int)S::ROWS;
    int tile = p.causal ? tiles - 1 - unit / heads : unit % tiles, head = p.causal ? unit % heads : unit / tiles;
    Work w;
    w.tiles = -1;
    if (tile < 0 || head >= heads) return w; // no more
    w.head = head % (int)p.heads;
    w.b = head / (int)p.heads;
    w.first = tile * (int)S::ROWS;
    w.count = p.q_len.data ? (int)clamped(load_index(p.q_len, w.b * p.q_len.stride[0]), 0, p.q_rows) : (int)p.q_rows;
    w.keys = p.kv_len.data ? (int)clamped(load_index(p.kv_len, w.b * p.kv_len.stride[0]), 0, p.capacity) : (int)p.capacity;
    // Of the valid rows the first sees the first keys, the last the last.
    int last = w.first + (int)S::ROWS < w.count ? w.first + (int)S::ROWS - 1 : w.count - 1;
    bool valid = w.first < w.count;
    int start = w.start(p, w.first), end = valid ? w.end(p, last) : 0;
    w.begin = start / (int)S::KEYS;
    w.tiles = end > start ? (end + (int)S::KEYS - 1) / (int)S::KEYS - w.begin : 0;
    w.from_all = valid ? (w.start(p, last) + (int)S::KEYS - 1) / (int)S::KEYS : 0;
    w.to_all = w.end(p, w.first) / (int)S::KEYS;
    return w;
}

// A head's width, keys of a tile, how many warpgroups multiply; and the places in shared memory.
template <int WIDTH, u32 TILE, u32 CONSUMERS> struct Shape {
    enum : u32 {
        D = WIDTH, KEYS = TILE, GROUPS = CONSUMERS, ROWS = GROUPS * 64, THREADS = (GROUPS + 1) * 128, Q_BYTES = ROWS * D * 2, BYTES = KEYS * D * 2
    };
    u32 base;
    Work* works; // two, in turns
    DEV u32 q() const {
        return base;
    }
    DEV u32 k(u32 stage) const {
        return base + Q_BYTES + stage * BYTES;
    }
    DEV u32 v(u32 stage) const {
        return k(STAGES + stage);
    }
    DEV u32 q_full() const {
        return k(2 * STAGES);
    }
    DEV u32 q_empty() const {
        return q_full() + 8;
    }
    DEV u32 k_full(u32 stage) const {
        return q_full() + 16 + stage * 8;
    }
    DEV u32 v_full(u32 stage) const {
        return k_full(STAGES + stage);
    }
    DEV u32 k_empty(u32 stage) const {
        return k_full(2 * STAGES + stage);
    }
    DEV u32 v_empty(u32 stage) const {
        return k_full(3 * STAGES + stage);
    }
};

// A tile of rows of a head.
template <class S> DEV void fetch_tile(u32 to, u64 map, u32 rows, u32 row, u32 head, u32 b, u32 barrier) {
    barrier_expect(barrier, rows * S::D * 2);
#pragma unroll
    for (u32 h = 0; h < S::D / 64; h++) copy_box(to + h * rows * ROW, map, h * 64, row, head, b, barrier);
}

// `maps`: the address of q's map.
template <class S> DEV void produce(const AttentionArgs& p, u64 maps, const S& m) {
    u32 step = 0;
#pragma unroll 1
    for (u32 round = 0;; round++) {
        Work w = work_of<S>(p, round);
        barrier_wait(m.q_empty(), round % 2 ^ 1);
        m.works[round % 2] = w;
        if (w.tiles < 0) {
            barrier_arrive(m.q_full());
            break;
        }
        int kv_head = w.head / (int)p.group;
        fetch_tile<S>(m.q(), maps, S::ROWS, w.first, w.head, w.b, m.q_full());
#pragma unroll 1
        for (int i = w.tiles - 1; i >= 0; i--, step++) {
            u32 stage = step % STAGES, parity = step / STAGES % 2 ^ 1, key = (w.begin + i) * S::KEYS;
            barrier_wait(m.k_empty(stage), parity);
            fetch_tile<S>(m.k(stage), maps + sizeof(TensorMap), S::KEYS, key, kv_head, w.b, m.k_full(stage));
            barrier_wait(m.v_empty(stage), parity);
            fetch_tile<S>(m.v(stage), maps + 2 * sizeof(TensorMap), S::KEYS, key, kv_head, w.b, m.v_full(stage));
        }
    }
}

// What is not done to all scores: scale, cap, bias and mask of those from key `n` and row `first` on.
template <u32 KEYS> DEV void special(const AttentionArgs& p, const Work& w, float (&s)[KEYS / 2], int n, int first) {
    bool capped = p.softcap != 0.0f, biased = p.alibi.data != nullptr;
    if (capped || biased || !(p.scale > 0.0f)) {
#pragma unroll
        for (u32 i = 0; i < KEYS / 2; i++) s[i] *= p.scale;
    }
    if (capped) {
        float uncap = 1.0f / p.softcap;
#pragma unroll
        for (u32 i = 0; i < KEYS / 2; i++) s[i] = p.softcap * squashed(s[i] * uncap);
    }
    if (biased) {
        float slope = load_float(p.alibi, w.head * p.alibi.stride[0]);
#pragma unroll
        for (u32 i = 0; i < KEYS / 2; i++) s[i] += slope * (float)(n - w.position(first) + (int)(i / 4 * 8 + i % 2) - (int)(i / 2 % 2 * 8));
    }
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        int start = w.start(p, first + 8 * r) - n, end = w.end(p, first + 8 * r) - n;
#pragma unroll
        for (u32 i = 2 * r; i < KEYS / 2; i += 4) {
            int key = (int)i / 4 * 8;
            if (key < start || key >= end) s[i] = -INFINITE;
            if (key + 1 < start || key + 1 >= end) s[i + 1] = -INFINITE;
        }
    }
}

template <class Elem, class S> DEV void consume(const AttentionArgs& p, const S& m) {
    enum : u32 { D = S::D, KEYS = S::KEYS, GROUPS = S::GROUPS, ROWS = S::ROWS };
    u32 group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32, quad = lane % 4, line = threadIdx.x % 128 / 32 * 16 + lane / 4;
    // As a rule the scale goes into the exponent's multiplication.
    bool plain = p.softcap == 0.0f && !p.alibi.data && p.scale > 0.0f;
    float unit = plain ? p.scale : 1.0f, factor = unit * 1.44269504f;
    u32 step = 0;
    // Two groups take turns: each waits at its own barrier for the other.
    if (GROUPS == 2 && group == 1) asm volatile("bar.arrive 1, 256;" ::: "memory");
#pragma unroll 1
    for (u32 round = 0;; round++) {
        barrier_wait(m.q_full(), round % 2);
        const Work& w = m.works[round % 2];
        int tiles = w.tiles, begin = w.begin;
        if (tiles < 0) break;
        int first = w.first + (int)(group * 64 + line); // and the row 8 behind: this thread's
        float s[KEYS / 2], o[D / 2], largest[2] = {-INFINITE, -INFINITE}, sum[2] = {}, decay[2];
        u32 weights[KEYS / 4];
#pragma unroll
        for (u32 i = 0; i < D / 2; i++) o[i] = 0.0f;
        auto multiply_scores = [&](u32 stage) {
#pragma unroll
            for (u32 k = 0; k < D / 16; k++) {
                u32 half = k / 4, at = k % 4 * 32;
                Elem::scores(s, descriptor(m.q() + (half * ROWS + group * 64) * ROW + at), descriptor(m.k(stage) + half * KEYS * ROW + at), k > 0);
            }
            products_end();
        };
        auto multiply_values = [&](u32 stage) {
#pragma unroll
            for (u32 k = 0; k < KEYS / 16; k++) Elem::values(o, weights + 4 * k, transposed(m.v(stage) + k * 16 * ROW, KEYS * ROW));
            products_end();
        };
        // Tiles of keys that all rows see wholly, none where the scores take more than a scale.
        int from_all = w.from_all, whole = plain && w.to_all > from_all ? w.to_all - from_all : 0;
        auto softmax = [&](int tile) {
            if ((u32)(tile - from_all) >= (u32)whole) special<KEYS>(p, w, s, tile * (int)KEYS + (int)quad * 2, first);
#pragma unroll
            for (u32 r = 0; r < 2; r++) {
                float most = largest[r];
#pragma unroll
                for (u32 i = 0; i < KEYS / 2; i += 4) most = fmaxf(most, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
                most = quad_max(most);
                // Nothing seen so far: a weight of exp(-inf - 0) is 0. A NaN stays in the weights, an infinite maximum makes one.
                float base = most == -INFINITE ? 0.0f : most * factor;
                decay[r] = power_of_two(largest[r] * factor - base);
                largest[r] = most;
                float added = 0.0f;
#pragma unroll
                for (u32 i = 2 * r; i < KEYS / 2; i += 4) {
                    s[i] = power_of_two(s[i] * factor - base);
                    s[i + 1] = power_of_two(s[i + 1] * factor - base);
                    added += s[i] + s[i + 1];
                }
                sum[r] = sum[r] * decay[r] + added;
            }
        };
        auto pack = [&] {
#pragma unroll
            for (u32 i = 0; i < KEYS / 4; i++) weights[i] = Elem::pair(s[2 * i], s[2 * i + 1]);
        };

        if (tiles > 0) {
            int n = (begin + tiles - 1) * (int)S::KEYS;
            u32 stage = step % STAGES, parity = step / STAGES % 2;
            barrier_wait(m.k_full(stage), parity);
            products_begin();
            multiply_scores(stage);
            products_wait<0>();
            settled(s);
            if (lane == 0) barrier_arrive(m.k_empty(stage));
            softmax(begin + tiles - 1);
            pack();
            // Behind the last valid key may lie anything, and a weight of 0 hides no NaN: zeros, from each group for itself.
            if (n + (int)S::KEYS > w.keys && w.keys < (int)p.capacity) {
                barrier_wait(m.v_full(stage), parity);
#pragma unroll 1
                for (u32 i = (u32)(w.keys - n) * (ROW / 16) + threadIdx.x % 128; i < KEYS * (ROW / 16); i += 128) {
#pragma unroll
                    for (u32 h = 0; h < D / 64; h++) {
                        asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(m.v(stage) + h * KEYS * ROW + i * 16), "r"(0) : "memory");
                    }
                }
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
                named_sync(group + 1 + GROUPS, 128);
            }
        }
#pragma unroll 1
        for (int i = tiles - 2; i >= 0; i--) {
            u32 v_stage = step % STAGES, v_parity = step / STAGES % 2;
            step++;
            u32 k_stage = step % STAGES;
            barrier_wait(m.k_full(k_stage), step / STAGES % 2);
            if (GROUPS == 2) named_sync(group + 1, 256);
            products_begin();
            multiply_scores(k_stage);
            barrier_wait(m.v_full(v_stage), v_parity);
            products_begin();
            multiply_values(v_stage);
            if (GROUPS == 2) asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory");
            products_wait<1>();
            settled(s);
            if (lane == 0) barrier_arrive(m.k_empty(k_stage));
            softmax(begin + i);
            // Never true, and the assembler moves no write over a wait: without it, it moves the exponentials behind.
            asm volatile("{.reg .pred never; setp.lt.f32 never, %0, 0f00000000; @never st.shared.f32 [%1], %0;}" ::"f"(sum[0] + sum[1]), "r"(m.q())
                         : "memory");
            products_wait<0>();
            settled(o);
            settled(s);
            if (lane == 0) barrier_arrive(m.v_empty(v_stage));
            pack();
            if (__ballot_sync(0xffffffffu, decay[0] != 1.0f || decay[1] != 1.0f) != 0) {
#pragma unroll
                for (u32 i = 0; i < D / 2; i++) o[i] *= decay[i / 2 % 2];
            }
        }
        if (lane == 0) barrier_arrive(m.q_empty());
        if (tiles > 0) {
            u32 stage = step % STAGES;
            barrier_wait(m.v_full(stage), step / STAGES % 2);
            products_begin();
            multiply_values(stage);
            products_wait<0>();
            settled(o);
            if (lane == 0) barrier_arrive(m.v_empty(stage));
            step++;
        }

        float sink = p.sinks.data ? load_float(p.sinks, w.head * p.sinks.stride[0]) : -INFINITE;
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            u32 i = (u32)first + 8 * r;
            bool absent = (int)i >= w.count;
            float total = quad_sum(sum[r]), most = largest[r] * unit;
            bool blind = absent || (largest[r] == -INFINITE && !is_nan(total));
            bool spoiled = !blind && (is_nan(total) || !(sink < INFINITE));
            float top = fmaxf(most, sink), by = blind ? 0.0f : exponential(most - top);
            if (sink != -INFINITE) total = total * by + exponential(sink - top);
            float scale = by / total;
            if (p.lse.data && quad == 0 && i < p.q_rows) {
                float lse = spoiled ? NOT_A_NUMBER : absent ? -INFINITE : blind ? sink : top + logf(total);
                ((float*)p.lse.data)[w.b * p.lse.stride[2] + w.head * p.lse.stride[1] + i * p.lse.stride[0]] = lse;
            }
            i64 out = w.b * p.out.stride[3] + w.head * p.out.stride[1] + i * p.out.stride[2];
#pragma unroll
            for (u32 c = 0; c < D / 32; c++) {
                // Four lanes hold two elements of each of four chunks: lane t gets chunk t.
                u32 pairs[4], chunk[4];
#pragma unroll
                for (u32 e = 0; e < 4; e++) {
                    float low = o[(c * 4 + e) * 4 + 2 * r] * scale, high = o[(c * 4 + e) * 4 + 2 * r + 1] * scale;
                    pairs[e] = blind ? 0 : spoiled ? Elem::pair(NOT_A_NUMBER, NOT_A_NUMBER) : Elem::pair(low, high);
                }
#pragma unroll
                for (u32 by = 0; by < 4; by++) {
                    u32 other = quad ^ by, sent = other & 2 ? (other & 1 ? pairs[3] : pairs[2]) : (other & 1 ? pairs[1] : pairs[0]);
                    u32 got = __shfl_xor_sync(0xffffffffu, sent, by);
#pragma unroll
                    for (u32 e = 0; e < 4; e++) chunk[e] = other == e ? got : chunk[e];
                }
                if (i < p.q_rows && (c * 4 + quad) * 8 < p.dv) {
                    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"((u16*)p.out.data + out + (c * 4 + quad) * 8), "r"(chunk[0]),
                                 "r"(chunk[1]), "r"(chunk[2]), "r"(chunk[3])
                                 : "memory");
                }
            }
        }
    }
}

template <class Elem, class S> DEV void attention(const AttentionArgs& p, u64 maps) {
    extern __shared__ __align__(1024) u8 shared[];
    S m = {shared_address(shared), nullptr};
    m.works = (Work*)(shared + m.v_empty(STAGES) - m.base);
    if (threadIdx.x == 0) {
        barrier_init(m.q_full(), 1);
        barrier_init(m.q_empty(), S::GROUPS * 4);
        for (u32 stage = 0; stage < STAGES; stage++) {
            barrier_init(m.k_full(stage), 1);
            barrier_init(m.v_full(stage), 1);
            barrier_init(m.k_empty(stage), S::GROUPS * 4);
            barrier_init(m.v_empty(stage), S::GROUPS * 4);
        }
        barriers_made();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        registers_down<S::GROUPS == 2 ? 40 : 32>();
        if (threadIdx.x < 32 && elected()) produce(p, maps, m);
    } else {
        registers_up<S::GROUPS == 2 ? 232 : 160>();
        consume<Elem>(p, m);
    }
}

#define ENTRY(name, elem, ...)                                                                                                    \
    KERNEL void __launch_bounds__(Shape<__VA_ARGS__>::THREADS, 1) name(const __grid_constant__ Args p) {                          \
        u64 at;                                                                                                                   \
        PARAMETERS(name, at);                                                                                                     \
        attention<elem, Shape<__VA_ARGS__>>(p.a, at + (u64)&((Args*)0)->q);                                                       \
    }
ENTRY(wide_64_bf16, Bf16s, 64, 96, 3)
ENTRY(wide_128_bf16, Bf16s, 128, 128, 2)
ENTRY(wide_64_f16, Halves, 64, 96, 3)
ENTRY(wide_128_f16, Halves, 128, 128, 2)
