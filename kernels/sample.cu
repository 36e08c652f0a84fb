// One index per row. Weights are whole numbers, relative to the largest one's 2^52 / n: their sums are exact in any order, so a draw is
// reproducible and does not depend on how blocks share the work.
// - Greedy, or top_k up to 2048: the best k of a row as sorted keys (select.cuh), of which the last block draws.
// - Otherwise four launches: the largest and lowest logit; weights by 2048 buckets between them, as far as weights are not 0; the elements in order of
//   their buckets; a block per row, which finds the bucket where a limit is crossed, and within it sorts (or, of more than 2048, looks at one byte of the keys
//   after the other).
// Traffic: the row once, then from cache. Floor: 131072 f32 are 0.5 MB, two (four) launches of 2 us each. Predicted for an H200: top 40 of one row
// of 131072 8 us, all of it 14 us. Measured there (a graph of launches): 13 us, and 41 us with top_p 0.95 (ends 2.2, buckets 6.2, places 22, draw 11); 64 rows
// 46 us. The places wait for atomic counts. Before, the work of one block: 6.6 ms.
#include "select.cuh"

struct Args {
    Tensor logits, seed, out;
    Narrow narrow;
    u64 *buckets, rows; // scratch: of each row BUCKETS weights, then of each BUCKETS pairs of counts and cursors, parts keys, parts floats, n keys
    u64 top_k;    // 0 keeps all
    float temperature, one; // one: the weight of the largest logit
    float top_p;
};

#define BUCKETS 2048
#define OWN (BUCKETS / THREADS) // of a thread
struct Shared {
    Best best;
    u64 histogram[256], warps[8], before, until;
    u32 found;
};

DEV u64 weight(const Args& p, float x, float largest) {
    return __float2ull_rn(expf((x - largest) / p.temperature) * p.one);
}
DEV float value_of(u64 key) {
    u32 order = (u32)(key >> 32);
    return __uint_as_float(order >> 31 ? order ^ 0x80000000u : ~order);
}

// Of weights in order, OWN of each thread: the first at which their sum exceeds `limit`, which is less than all. Before it are `before`, with it `until`.
struct Crossing {
    u32 at;
    u64 before, until;
};
DEV u64 sum_of(const u64 (&w)[OWN]) {
    u64 sum = 0;
#pragma unroll
    for (u32 i = 0; i < OWN; i++) sum += w[i];
    return sum;
}
DEV Crossing cross(const u64 (&w)[OWN], u64 limit, Shared& s) {
    u64 all, before = sum_before(sum_of(w), all, s.warps);
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
        if (before <= limit && limit < before + w[i]) {
            s.found = threadIdx.x * OWN + i;
            s.before = before;
            s.until = before + w[i];
        }
        before += w[i];
    }
    __syncthreads();
    Crossing c = {s.found, s.before, s.until};
    __syncthreads();
    return c;
}

// Up to where the sum first is top_p of all, at least one element: the limit that it exceeds.
DEV u64 mass(const Args& p, u64 total) {
    u64 share = __float2ull_rn(p.top_p * 4294967296.0f);
    u64 mass = (total >> 32) * share + ((total & 0xffffffffu) * share >> 32);
    return mass > 0 ? mass - 1 : 0;
}
// A row's uniform part of what is kept.
DEV u64 target(const Args& p, u64 row, u64 total) {
    u64 z = ((u64)(u32)load_index(p.seed, 0) | (u64)(u32)load_index(p.seed, p.seed.stride[0]) << 32);
    z += (row + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    z = (z ^ z >> 31) >> 40;
    return (total >> 24) * z + ((total & 0xffffffu) * z >> 24);
}
// Rows that are not drawn take their best.
DEV bool certain(const Args& p, float largest) {
    return p.temperature == 0.0f || !(fabsf(largest) < INFINITE);
}
DEV int* out_of(const Args& p, i64 row) {
    return (int*)p.out.data + row * p.out.stride[0];
}

KERNEL void __launch_bounds__(256, 3) sample(const __grid_constant__ Args p) {
    __shared__ Shared s;
    u32 k = narrow(p.logits, p.narrow, s.best);
    if (!p.narrow.last) return;
    int* out = out_of(p, blockIdx.x);
    float largest = k == 0 ? NOT_A_NUMBER : value_of(s.best.keys[0]);
    if (certain(p, largest)) {
        if (threadIdx.x == 0) *out = k == 0 ? -1 : (int)index_of(s.best.keys[0]);
        return;
    }
    u64 w[OWN], total;
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
        u32 c = threadIdx.x * OWN + i;
        w[i] = c < k ? weight(p, value_of(s.best.keys[c]), largest) : 0;
    }
    sum_before(sum_of(w), total, s.warps);
    if (p.top_p < 1.0f) total = cross(w, mass(p, total), s).until;
    Crossing drawn = cross(w, target(p, blockIdx.x, total), s);
    if (threadIdx.x == 0) *out = (int)index_of(s.best.keys[drawn.at]);
}

// Where the parts of the scratch memory lie.
DEV u64* weights_of(const Args& p, u64 row) {
    return p.buckets + row * BUCKETS;
}
DEV u32* counts_of(const Args& p, u64 row) {
    return (u32*)(p.buckets + (p.rows + row) * BUCKETS);
}
DEV u32* cursors_of(const Args& p, u64 row) {
    return counts_of(p, row) + BUCKETS;
}
DEV u64* tops_of(const Args& p, u64 row) {
    return p.buckets + 2 * p.rows * BUCKETS + row * p.narrow.parts;
}
DEV float* lows_of(const Args& p, u64 row) {
    return (float*)(p.buckets + 2 * p.rows * BUCKETS + (p.rows + row) * p.narrow.parts);
}
DEV u64* elements_of(const Args& p, u64 row) {
    return p.buckets + 2 * p.rows * (BUCKETS + p.narrow.parts) + row * p.narrow.n;
}

DEV u64 block_best(u64 key, u64* warps) {
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) {
        u64 other = (u64)__shfl_xor_sync(0xffffffffu, (u32)(key >> 32), step) << 32 | __shfl_xor_sync(0xffffffffu, (u32)key, step);
        key = other > key ? other : key;
    }
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = key;
    __syncthreads();
    key = warps[0];
#pragma unroll
    for (u32 w = 1; w < 8; w++) key = warps[w] > key ? warps[w] : key;
    __syncthreads();
    return key;
}

// Calls `visit(x, index, count)` for fours of the elements of the block's part of a row, of which `count` are there.
template <class Visit> DEV void fours_of_part(const Args& p, Visit visit) {
    u64 row = blockIdx.x / (u32)p.narrow.parts, first = blockIdx.x % (u32)p.narrow.parts * p.narrow.chunk;
    u64 end = first + p.narrow.chunk < p.narrow.n ? first + p.narrow.chunk : p.narrow.n;
    bool whole = whole_fours(p.logits);
#pragma unroll 1
    for (u64 j = first + threadIdx.x * 4; j < end; j += THREADS * 4) {
        visit(four_of(p.logits, row, j, end, whole), j, end - j < 4 ? (u32)(end - j) : 4);
    }
}
// The same, one by one.
template <class Visit> DEV void each_of_part(const Args& p, Visit visit) {
    fours_of_part(p, [&](const Floats<4>& v, u64 j, u32 count) {
#pragma unroll
        for (u32 u = 0; u < 4; u++) {
            if (u < count) visit(v.x[u], j + u);
        }
    });
}

// The best of each part, and its lowest that has a weight; counts become 0.
KERNEL void __launch_bounds__(256) sample_ends(const __grid_constant__ Args p) {
    __shared__ u64 warps[8];
    u64 row = blockIdx.x / (u32)p.narrow.parts, part = blockIdx.x % (u32)p.narrow.parts;
    for (u64 i = part * THREADS + threadIdx.x; i < BUCKETS; i += p.narrow.parts * THREADS) {
        weights_of(p, row)[i] = 0;
        counts_of(p, row)[i] = cursors_of(p, row)[i] = 0;
    }
    u64 best = 0, low = 0; // low: the larger the lower
    each_of_part(p, [&](float x, u64 j) {
        u64 key = key_of(x, j);
        best = key > best ? key : best;
        if (x > -INFINITE) low = ~key > low ? ~key : low;
    });
    best = block_best(best, warps);
    low = block_best(low, warps);
    if (threadIdx.x != 0) return;
    tops_of(p, row)[part] = best;
    lows_of(p, row)[part] = low == 0 ? INFINITE : value_of(~low);
}

// What a row's elements are relative to.
struct Ends {
    u64 best;
    float largest, scale; // scale: buckets per unit of the exponent
};
DEV Ends ends_of(const Args& p, u64 row, u64* warps) {
    u64 best = 0, low = 0;
#pragma unroll 1
    for (u64 i = threadIdx.x; i < p.narrow.parts; i += THREADS) {
        u64 top = tops_of(p, row)[i], bottom = ~key_of(lows_of(p, row)[i], 0);
        best = top > best ? top : best;
        low = bottom > low ? bottom : low;
    }
    best = block_best(best, warps);
    low = block_best(low, warps);
    float largest = value_of(best), range = fminf((largest - value_of(~low)) / p.temperature, 48.0f);
    return {best, best == 0 ? NOT_A_NUMBER : largest, range > 1e-30f ? BUCKETS / range : 0.0f};
}
DEV u32 bucket_of(const Args& p, const Ends& e, float x) {
    u32 at = __float2uint_rz((e.largest - x) / p.temperature * e.scale);
    return at < BUCKETS ? at : BUCKETS - 1;
}

KERNEL void __launch_bounds__(256) sample_buckets(const __grid_constant__ Args p) {
    __shared__ u64 weights[BUCKETS], warps[8];
    __shared__ u32 counts[BUCKETS];
    u64 row = blockIdx.x / (u32)p.narrow.parts;
    Ends e = ends_of(p, row, warps);
    if (certain(p, e.largest)) return;
    for (u32 i = threadIdx.x; i < BUCKETS; i += THREADS) weights[i] = counts[i] = 0;
    __syncthreads();
    each_of_part(p, [&](float x, u64) {
        u64 w = weight(p, x, e.largest);
        if (w == 0) return;
        u32 at = bucket_of(p, e, x);
        atomicAdd(&weights[at], w);
        atomicAdd(&counts[at], 1);
    });
    __syncthreads();
    for (u32 i = threadIdx.x; i < BUCKETS; i += THREADS) {
        if (counts[i] == 0) continue;
        atomicAdd(&weights_of(p, row)[i], weights[i]);
        atomicAdd(&counts_of(p, row)[i], counts[i]);
    }
}

// The elements by their buckets; their order within one is not said, and does not matter.
KERNEL void __launch_bounds__(256) sample_places(const __grid_constant__ Args p) {
    __shared__ u64 warps[8];
    __shared__ u32 firsts[BUCKETS];
    u64 row = blockIdx.x / (u32)p.narrow.parts;
    Ends e = ends_of(p, row, warps);
    if (certain(p, e.largest)) return;
    u64 own = 0, all;
    const u32* counts = counts_of(p, row) + threadIdx.x * OWN;
#pragma unroll
    for (u32 i = 0; i < OWN; i++) own += counts[i];
    u32 first = (u32)sum_before(own, all, warps);
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
        firsts[threadIdx.x * OWN + i] = first;
        first += counts[i];
    }
    __syncthreads();
    u32* cursors = cursors_of(p, row);
    fours_of_part(p, [&](const Floats<4>& x, u64 j, u32 count) {
        // Four counts are on their way at once; what has no weight adds nothing to any.
        u32 at[4], place[4];
        bool has[4];
#pragma unroll
        for (u32 u = 0; u < 4; u++) {
            has[u] = u < count && weight(p, x.x[u], e.largest) != 0;
            at[u] = bucket_of(p, e, x.x[u]);
        }
#pragma unroll
        for (u32 u = 0; u < 4; u++) place[u] = atomicAdd(cursors + at[u], has[u] ? 1 : 0);
#pragma unroll
        for (u32 u = 0; u < 4; u++) {
            if (has[u]) elements_of(p, row)[firsts[at[u]] + place[u]] = key_of(x.x[u], j + u);
        }
    });
}

// Of `count` keys in any order: that at which the sum of weights (or, for `number`, of elements) in descending order first exceeds `limit`, as Crossing says.
struct Found {
    u64 key, until;
};
DEV Found find(const Args& p, const u64* keys, u32 count, float largest, bool number, u64 limit, Shared& s) {
    auto worth = [&](u64 key) { return number ? 1ull : weight(p, value_of(key), largest); };
    if (count <= MOST) {
        for (u32 i = threadIdx.x; i < count; i += THREADS) s.best.keys[i] = keys[i];
        if (count <= FEW) {
            __syncthreads();
            sort_few(s.best.keys, count);
        } else sort(s.best.keys, count);
        u64 w[OWN];
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            u32 c = threadIdx.x * OWN + i;
            w[i] = c < count ? worth(s.best.keys[c]) : 0;
        }
        Crossing c = cross(w, limit, s);
        return {s.best.keys[c.at], c.until};
    }
    u64 prefix = 0, mask = 0, before = 0;
#pragma unroll 1
    for (int shift = 56; shift >= 0; shift -= 8) {
        s.histogram[threadIdx.x] = 0;
        __syncthreads();
#pragma unroll 4
        for (u32 i = threadIdx.x; i < count; i += THREADS) {
            u64 key = keys[i];
            if ((key & mask) == prefix) atomicAdd(&s.histogram[(key >> shift) & 255], worth(key));
        }
        __syncthreads();
        // From the largest bucket down: the first eighth of the threads has all of them.
        u64 w[OWN];
#pragma unroll
        for (u32 i = 0; i < OWN; i++) w[i] = threadIdx.x < 256 / OWN ? s.histogram[255 - (threadIdx.x * OWN + i)] : 0;
        Crossing c = cross(w, limit - before, s);
        prefix |= (u64)(255 - c.at) << shift;
        mask |= 255ull << shift;
        before += c.before;
    }
    return {prefix, before + worth(prefix)};
}

KERNEL void __launch_bounds__(256, 2) sample_draw(const __grid_constant__ Args p) {
    __shared__ Shared s;
    u64 row = blockIdx.x;
    Ends e = ends_of(p, row, s.warps);
    if (certain(p, e.largest)) {
        if (threadIdx.x == 0) *out_of(p, row) = e.best == 0 ? -1 : (int)index_of(e.best);
        return;
    }
    u64 w[OWN], counts[OWN], total, number;
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
        w[i] = weights_of(p, row)[threadIdx.x * OWN + i];
        counts[i] = counts_of(p, row)[threadIdx.x * OWN + i];
    }
    sum_before(sum_of(w), total, s.warps);
    sum_before(sum_of(counts), number, s.warps);
    const u64* elements = elements_of(p, row);
    // Where the bucket's elements begin.
    auto keys_of = [&](u32 at) {
        u64 all, mine = 0;
#pragma unroll
        for (u32 i = 0; i < OWN; i++) mine += threadIdx.x * OWN + i < at ? counts[i] : 0;
        sum_before(mine, all, s.warps);
        return elements + all;
    };
    auto find_at = [&](u64 limit) {
        Crossing c = cross(w, limit, s);
        Found f = find(p, keys_of(c.at), counts_of(p, row)[c.at], e.largest, false, limit - c.before, s);
        return Found{f.key, c.before + f.until};
    };
    if (p.top_k > 0 && p.top_k < number) {
        // What is kept up to the bucket of the last one, and of that bucket as far as that.
        Crossing c = cross(counts, p.top_k - 1, s);
        const u64* keys = keys_of(c.at);
        u32 count = counts_of(p, row)[c.at];
        Found last = find(p, keys, count, e.largest, true, p.top_k - 1 - c.before, s);
        u64 kept = 0;
#pragma unroll
        for (u32 i = 0; i < OWN; i++) kept += threadIdx.x * OWN + i < c.at ? w[i] : 0;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < count; i += THREADS) kept += keys[i] >= last.key ? weight(p, value_of(keys[i]), e.largest) : 0;
        sum_before(kept, total, s.warps);
    }
    if (p.top_p < 1.0f) total = find_at(mass(p, total)).until;
    Found drawn = find_at(target(p, row, total));
    if (threadIdx.x == 0) *out_of(p, row) = (int)index_of(drawn.key);
}
