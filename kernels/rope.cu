// Rotary embedding in place, and into a cache. Angles are exact: frequencies come as turns per position in units of 2^-64, so that position times frequency,
// modulo whole turns, is an integer product modulo 2^64; sine and cosine are polynomials within an eighth of a turn. Without a cache a thread has four
// neighbouring pairs of several heads of a token and computes their angles once; with one, a block has 1024 pairs of a token. Traffic: x twice, the table from
// cache. Floor on an H200: 4096 tokens of 40 heads of 64 f32 are 84 MB, 20 us at 4.3 TB/s. Measured there: 23 us; 512 tokens of 32 heads of 128 f32 5.0 us in
// halves, 7.4 us side by side (pair by pair: 9.0 us); one token 2.3 us.
#include "elements.cuh"
#include "block.cuh"
#include "cache.cuh"
#include "encode.cuh"

struct Args {
    CacheArgs to; // absent: no cache
    Tensor x, positions, factors;
    const u64* frequencies;
    u64 heads, pairs, parts, blocks; // parts: pairs, and with a cache the elements that are only copied; blocks: per token
    u64 step_pair, step_other;
    float amplitude;
    u32 bytes; // of a quantized block of the cache
};

// frequency / factor, for a factor that is a positive normal number m 2^(e - 150): 0 where it is beyond all turns.
DEV u64 divided(u64 frequency, float factor) {
    u32 bits = __float_as_uint(factor);
    u64 m = (bits & 0x7fffffu) | 0x800000u;
    u64 q = (frequency / m << 24) + (frequency % m << 24) / m; // frequency 2^24 / m
    int shift = (int)(bits >> 23) - 126;
    if (shift >= 64 || shift <= -64) return 0;
    return shift >= 0 ? q >> shift : q << -shift;
}

struct Angle {
    float cosine, sine;
};

DEV Angle angle_of(const Args& p, i64 position, u64 pair) {
    u64 frequency = p.frequencies[pair];
    float amplitude = p.amplitude;
    bool backwards = position < 0;
    if (p.factors.data) {
        float factor = load_float(p.factors, pair * p.factors.stride[0]), size = fabsf(factor);
        backwards = backwards != (factor < 0.0f);
        if (size >= __uint_as_float(0x800000u) && size < INFINITE) {
            frequency = divided(frequency, size);
        } else {
            // Infinitely slow stands still; anything else is no angle.
            frequency = 0;
            if (size != INFINITE) amplitude = NOT_A_NUMBER;
        }
    }
    u64 angle = (u64)(position < 0 ? -position : position) * frequency;
    // The nearest quarter turn, and the rest within an eighth of a turn of it.
    u32 quarter = (u32)((angle + (1ull << 61)) >> 62);
    float r = (float)(i64)(angle - ((u64)quarter << 62)) * 3.40612158e-19f; // 2 pi / 2^64
    float t = r * r;
    float s = r * (1.0f + t * (-0.166666667f + t * (0.00833333333f + t * (-0.000198412698f + t * 2.75573192e-6f))));
    float c = 1.0f + t * (-0.5f + t * (0.0416666667f + t * (-0.00138888889f + t * (2.48015873e-5f - t * 2.75573192e-7f))));
    float cosine = quarter & 1 ? -s : c, sine = quarter & 1 ? c : s;
    cosine = quarter & 2 ? -cosine : cosine;
    sine = (quarter & 2) != (backwards ? 2u : 0u) ? -sine : sine;
    return {cosine * amplitude, sine * amplitude};
}

// A pair's places within a head, and its elements turned.
struct Turned {
    i64 one, two;
    float x, y;
};

DEV Turned turned(const Args& p, i64 position, u64 pair, i64 row) {
    Angle angle = angle_of(p, position, pair);
    Turned v = {(i64)(pair * p.step_pair), (i64)(pair * p.step_pair + p.step_other), 0.0f, 0.0f};
    float a = load_float(p.x, row + v.one * p.x.stride[0]), b = load_float(p.x, row + v.two * p.x.stride[0]);
    v.x = a * angle.cosine - b * angle.sine;
    v.y = a * angle.sine + b * angle.cosine;
    return v;
}

// Without a cache, of dense heads: a block per token and `parts` heads; a thread has four neighbouring pairs of several heads, whose angles it computes once.
KERNEL void __launch_bounds__(256) rope_fours(const __grid_constant__ Args p) {
    u64 token = blockIdx.x / (u32)p.blocks, first = blockIdx.x % (u32)p.blocks * p.parts, end = first + p.parts < p.heads ? first + p.parts : p.heads;
    u32 lanes = (u32)p.pairs / 4, at_once = 256 / lanes, lane = threadIdx.x % lanes;
    i64 position = load_index(p.positions, token * p.positions.stride[0]);
    if (threadIdx.x >= at_once * lanes) return;
    bool adjacent = p.step_other == 1, whole = in_fours(p.x);
    Angle angle[4];
#pragma unroll
    for (u32 u = 0; u < 4; u++) angle[u] = angle_of(p, position, lane * 4 + u);
    i64 one = lane * (adjacent ? 8 : 4), two = adjacent ? one + 4 : one + (i64)p.step_other;
    auto four = [&](i64 at) {
        if (whole) return load_floats<4>(p.x, at);
        return Floats<4>{load_float(p.x, at), load_float(p.x, at + 1), load_float(p.x, at + 2), load_float(p.x, at + 3)};
    };
    auto put = [&](i64 at, const Floats<4>& v) {
        if (whole) return store_floats<4>(p.x, at, v);
#pragma unroll
        for (u32 u = 0; u < 4; u++) store(p.x, at + u, v.x[u]);
    };
#pragma unroll 2
    for (u64 head = first + threadIdx.x / lanes; head < end; head += at_once) {
        i64 row = token * p.x.stride[2] + head * p.x.stride[1];
        Floats<4> a = four(row + one), b = four(row + two), c, d;
#pragma unroll
        for (u32 u = 0; u < 4; u++) {
            // The u-th pair: beside each other, or each in its half.
            float x = adjacent ? u < 2 ? a.x[2 * u % 4] : b.x[2 * u % 4] : a.x[u];
            float y = adjacent ? u < 2 ? a.x[2 * u % 4 + 1] : b.x[2 * u % 4 + 1] : b.x[u];
            float turned_x = x * angle[u].cosine - y * angle[u].sine, turned_y = x * angle[u].sine + y * angle[u].cosine;
            if (adjacent) {
                (u < 2 ? c : d).x[2 * u % 4] = turned_x;
                (u < 2 ? c : d).x[2 * u % 4 + 1] = turned_y;
            } else {
                c.x[u] = turned_x;
                d.x[u] = turned_y;
            }
        }
        put(row + one, c);
        put(row + two, d);
    }
}

KERNEL void __launch_bounds__(256) rope(const __grid_constant__ Args p) {
    __shared__ u32 shared[8];
    u64 token = blockIdx.x / (u32)p.blocks, first = blockIdx.x % (u32)p.blocks * 1024;
    i64 slot = p.to.cache.data ? kept_slot(p.to, token, shared) : -1;
    i64 cached = slot < 0 ? 0 : cache_row(p.to, slot);
    i64 position = load_index(p.positions, token * p.positions.stride[0]);
    u64 all = p.heads * p.parts, end = first + 1024 < all ? first + 1024 : all;
#pragma unroll 1
    for (u64 i = first + threadIdx.x; i < end; i += 256) {
        u64 head = (u32)i / (u32)p.parts, pair = (u32)i % (u32)p.parts;
        i64 row = token * p.x.stride[2] + head * p.x.stride[1];
        i64 cache = cached + head * p.to.cache.stride[1];
        if (pair >= p.pairs) {
            u64 j = pair + p.pairs;
            if (slot >= 0) store_plain(p.to.cache, cache + j * p.to.cache.stride[0], load_float(p.x, row + j * p.x.stride[0]));
            continue;
        }
        Turned v = turned(p, position, pair, row);
        store(p.x, row + v.one * p.x.stride[0], v.x);
        store(p.x, row + v.two * p.x.stride[0], v.y);
        if (slot >= 0) {
            store_plain(p.to.cache, cache + v.one * p.to.cache.stride[0], v.x);
            store_plain(p.to.cache, cache + v.two * p.to.cache.stride[0], v.y);
        }
    }
}

// Into a cache of blocks of 32: a block per token and head, whose turned elements meet in shared memory.
KERNEL void __launch_bounds__(256) rope_blocks(const __grid_constant__ Args p) {
    __shared__ u32 shared[8];
    __shared__ float head_of[1024];
    u64 token = blockIdx.x / (u32)p.heads, head = blockIdx.x % (u32)p.heads, d = p.pairs + p.parts;
    i64 slot = kept_slot(p.to, token, shared);
    i64 position = load_index(p.positions, token * p.positions.stride[0]);
    i64 row = token * p.x.stride[2] + head * p.x.stride[1];
#pragma unroll 1
    for (u64 pair = threadIdx.x; pair < p.parts; pair += 256) {
        if (pair >= p.pairs) {
            head_of[pair + p.pairs] = load_float(p.x, row + (pair + p.pairs) * p.x.stride[0]);
            continue;
        }
        Turned v = turned(p, position, pair, row);
        store(p.x, row + v.one * p.x.stride[0], v.x);
        store(p.x, row + v.two * p.x.stride[0], v.y);
        head_of[v.one] = v.x;
        head_of[v.two] = v.y;
    }
    __syncthreads();
    u64 first = threadIdx.x * 32;
    if (slot < 0 || first >= d) return;
    float values[32];
#pragma unroll
    for (int n = 0; n < 32; n++) values[n] = head_of[first + n];
    i64 at = cache_row(p.to, slot) + head * p.to.cache.stride[1] + first;
    encode_block(p.to.cache.type, p.to.cache.data + at / 32 * p.bytes, values);
}
