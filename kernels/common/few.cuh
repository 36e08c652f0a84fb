// The products of kernels/gemm_few.cu: see there.
#pragma once
#include "eight.cuh"
#include "mma.cuh"

struct alignas(8) U2 {
    u32 x, y;
};

// What a lane multiplies with, for 256 k: its row of x, of 8 for each n.
struct Few {
    const u8* q;
    u32 pitch;          // from a row of x to the next
    const float* scale; // of all rows
    const u8* digits;   // of its row: sums of groups of 32 are 64 times one of the first 8 plus one of the last 8
};

// A row of blocks that begins at an even address: four bytes at even offsets from it.
struct Row {
    const u8* p[2]; // for offsets that are multiples of 4, and the others
    u32 select[2];
    DEV Row(const u8* row) {
        u32 odd = (u32)(u64)row & 2;
        p[0] = row - odd, p[1] = row + odd - 2;
        select[0] = odd ? 0x5432 : 0x3210, select[1] = odd ? 0x3210 : 0x5432;
    }
    // `more`: a multiple of 4.
    DEV u32 at(u32 offset, u32 more) const {
        const u32* words = (const u32*)(p[offset / 2 % 2] + offset + more);
        return __byte_perm(words[0], words[1], select[offset / 2 % 2]);
    }
};

// Each format: `step` adds the products of 256 k of two rows of w, at a and b, of which `groups` of 32 exist. A lane has k of number
// c % 4 of these rows, and sums of rows 2 c and 2 c + 1 of x. `PITCH` spreads 8 rows over the banks.
template <u32 T> struct Step;

template <> struct Step<Q4_K> {
    enum : u32 { BYTES = 144, PITCH = 288, N = 256, WORDS = 0 };
    template <u32 NT> static DEV void step(const u8* a, const u8* b, u32 c, u32, const Few& x, float (&y)[NT][4]) {
        U4 p = *(const U4*)a, q = *(const U4*)b;
        // Scales and minimums, a byte each: see k_group.
        u32 s[2] = {p.y & EACH(63), (p.w & EACH(15)) | (p.y >> 2 & EACH(48))}, t[2] = {q.y & EACH(63), (q.w & EACH(15)) | (q.y >> 2 & EACH(48))};
        u32 f = c == 0 ? p.z & EACH(63) : c == 1 ? (p.w >> 4 & EACH(15)) | (p.z >> 2 & EACH(48)) : 0;
        u32 g = c == 0 ? q.z & EACH(63) : c == 1 ? (q.w >> 4 & EACH(15)) | (q.z >> 2 & EACH(48)) : 0;
        int sum[NT][4] = {};
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            U2 u = *(const U2*)(a + 16 + j / 2 * 32 + 8 * c), v = *(const U2*)(b + 16 + j / 2 * 32 + 8 * c);
            u32 levels[4] = {bits(u.x, j % 2 * 4, 15), bits(v.x, j % 2 * 4, 15), bits(u.y, j % 2 * 4, 15), bits(v.y, j % 2 * 4, 15)};
            int first = (int)(s[j / 4] >> j % 4 * 8 & 255), second = (int)(t[j / 4] >> j % 4 * 8 & 255);
#pragma unroll
            for (u32 n = 0; n < NT; n++) {
                U2 few = *(const U2*)(x.q + n * 8 * x.pitch + 32 * j + 8 * c);
                int d[4] = {};
                Unsigned::mma(d, levels, few.x, few.y);
                sum[n][0] += first * d[0], sum[n][1] += first * d[1], sum[n][2] += second * d[2], sum[n][3] += second * d[3];
            }
        }
        float scales[2] = {f16_decode((u16)p.x), f16_decode((u16)q.x)}, minimums[2] = {f16_decode((u16)(p.x >> 16)), f16_decode((u16)(q.x >> 16))};
#pragma unroll
        for (u32 n = 0; n < NT; n++) {
            const u8* digits = x.digits + n * 8 * 16 + c % 2 * 4;
            u32 m[4] = {f, g, 0, 0};
            int high[4] = {}, low[4] = {};
            Signed::mma(high, m, *(const u32*)digits, 0);
            Signed::mma(low, m, *(const u32*)(digits + 8), 0);
#pragma unroll
            for (u32 u = 0; u < 4; u++) {
                float products = scales[u / 2] * (float)sum[n][u] - minimums[u / 2] * (float)(64 * high[u] + low[u]);
                y[n][u] += x.scale[n * 8 + 2 * c + u % 2] * products;
            }
        }
    }
};

template <> struct Step<Q6_K> {
    enum : u32 { BYTES = 210, PITCH = 464, N = 256, WORDS = 0 };
    template <u32 NT> static DEV void step(const u8* a, const u8* b, u32 c, u32, const Few& x, float (&y)[NT][4]) {
        Row p(a), q(b);
        float scales[2] = {f16_decode(*(const u16*)(a + 208)) * 0.25f, f16_decode(*(const u16*)(b + 208)) * 0.25f};
        int sum[NT][4] = {};
#pragma unroll
        for (u32 j = 0; j < 16; j++) { // groups of 16
            u32 half = j / 8, part = j / 2 % 4, i = j % 2;
            // Four times the level less 32: the lowest bits, then the others.
            auto levels_of = [&](const Row& r) {
                u32 low = r.at(64 * half + part % 2 * 32 + 16 * i, 4 * c), high = r.at(128 + 32 * half + 16 * i, 4 * c);
                return (((part < 2 ? low << 2 : low >> 2) & EACH(60)) | (high << (6 - 2 * part) & EACH(192))) ^ EACH(128);
            };
            auto scale_of = [&](const Row& r) { return (int)(r.at(192 + j / 4 * 4, 0) << (24 - j % 4 * 8)) >> 24; };
            u32 levels[4] = {levels_of(p), levels_of(q), 0, 0};
            int first = scale_of(p), second = scale_of(q);
#pragma unroll
            for (u32 n = 0; n < NT; n++) {
                int d[4] = {};
                Signed::mma(d, levels, *(const u32*)(x.q + n * 8 * x.pitch + 16 * j + 4 * c), 0);
                sum[n][0] += first * d[0], sum[n][1] += first * d[1], sum[n][2] += second * d[2], sum[n][3] += second * d[3];
            }
        }
#pragma unroll
        for (u32 n = 0; n < NT; n++) {
#pragma unroll
            for (u32 u = 0; u < 4; u++) y[n][u] += x.scale[n * 8 + 2 * c + u % 2] * (scales[u / 2] * (float)sum[n][u]);
        }
    }
};

// Formats of 32 elements behind an f16 scale.
template <class F> struct Step32 {
    template <u32 NT> static DEV void step(const u8* a, const u8* b, u32 c, u32 groups, const Few& x, float (&y)[NT][4]) {
        Row p(a), q(b);
        float sum[NT][4] = {};
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            u32 o = F::BYTES / 8 * j, levels[4];
            F::levels(levels, p, q, o + 2, c);
            // What lies beyond the row is no scale, and x is 0 there.
            float scales[2] = {f16_decode(j < groups ? *(const u16*)(a + o) : 0), f16_decode(j < groups ? *(const u16*)(b + o) : 0)};
#pragma unroll
            for (u32 n = 0; n < NT; n++) {
                U2 few = *(const U2*)(x.q + n * 8 * x.pitch + 32 * j + 8 * c);
                int d[4] = {};
                Signed::mma(d, levels, few.x, few.y);
#pragma unroll
                for (u32 u = 0; u < 4; u++) sum[n][u] += scales[u / 2] * (float)d[u];
            }
        }
#pragma unroll
        for (u32 n = 0; n < NT; n++) {
#pragma unroll
            for (u32 u = 0; u < 4; u++) y[n][u] += x.scale[n * 8 + 2 * c + u % 2] * (F::unit() * sum[n][u]);
        }
    }
};
template <> struct Step<Q8_0> : Step32<Step<Q8_0>> {
    enum : u32 { BYTES = 272, PITCH = 560, N = 32, WORDS = 1 };
    static DEV float unit() {
        return 1.0f;
    }
    static DEV void levels(u32 (&l)[4], const Row& p, const Row& q, u32 o, u32 c) {
        l[0] = p.at(o, 4 * c), l[1] = q.at(o, 4 * c), l[2] = p.at(o + 16, 4 * c), l[3] = q.at(o + 16, 4 * c);
    }
};
template <> struct Step<Q4_0> : Step32<Step<Q4_0>> {
    enum : u32 { BYTES = 144, PITCH = 304, N = 32, WORDS = 1 };
    static DEV float unit() {
        return 0.0625f; // levels are in the upper nibble, signed
    }
    static DEV void levels(u32 (&l)[4], const Row& p, const Row& q, u32 o, u32 c) {
        u32 u = p.at(o, 4 * c), v = q.at(o, 4 * c);
        l[0] = (u << 4 ^ EACH(128)) & EACH(240), l[1] = (v << 4 ^ EACH(128)) & EACH(240);
        l[2] = (u ^ EACH(128)) & EACH(240), l[3] = (v ^ EACH(128)) & EACH(240);
    }
};

// 256 numbers of a row of x as bytes, by a warp. Their scale is NaN where they have none.
template <u32 WORDS> DEV void quantize(const Eight& x, u8* q, float* scale, u8* digits, bool* none = nullptr) {
    u32 lane = threadIdx.x % 32, largest = 0;
#pragma unroll
    for (u32 u = 0; u < 8; u++) {
        u32 a = __float_as_uint(u < 4 ? x.a.x[u] : x.b.x[u - 4]) & 0x7fffffffu;
        largest = a > largest ? a : largest;
    }
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) {
        u32 other = __shfl_xor_sync(0xffffffffu, largest, step);
        largest = other > largest ? other : largest;
    }
    float inverse = largest > 0 ? 127.0f / __uint_as_float(largest) : 0.0f;
    u32 bytes[2];
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        const Four& f = h ? x.b : x.a;
        u32 v[4];
#pragma unroll
        for (u32 u = 0; u < 4; u++) v[u] = __float_as_uint(fmaf(f.x[u], inverse, 12582912.0f)); // the lowest byte of 2^23 + 2^22 + q
        bytes[h] = __byte_perm(__byte_perm(v[0], v[1], 0x0040), __byte_perm(v[2], v[3], 0x0040), 0x5410);
    }
    int sum = dp4a(EACH(1), bytes[1], dp4a(EACH(1), bytes[0], 0));
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (WORDS) { // number c of the words 0 to 3 and 4 to 7 of a group beside each other
        u8* to = q + lane / 4 * 32 + lane % 2 * 16 + lane / 2 % 2 * 4;
        *(u32*)to = bytes[0], *(u32*)(to + 8) = bytes[1];
    } else {
        *(U2*)(q + lane * 8) = {bytes[0], bytes[1]};
    }
    int high = (sum + 32) >> 6;
    if (lane % 4 == 0) digits[lane / 4] = (u8)high, digits[8 + lane / 4] = (u8)(sum - 64 * high);
    bool odd = largest >= 0x7f800000u || (largest > 0 && largest < 0x0da24260u); // below 1e-30
    if (lane == 0) *scale = odd ? NOT_A_NUMBER : __uint_as_float(largest) * (1.0f / 127.0f);
    if (none) *none |= odd;
}

// Rows of x as bytes in the scratch memory, for kernels that multiply more than one: behind the partial sums the bytes of each row, then the
// scales of each row, then the digits.
struct Prepared {
    u8* q;
    float* scales;
    u8* digits;
    u32 steps; // of a row
    DEV Prepared(const Args& p) {
        steps = ((u32)p.k + 255) / 256;
        q = p.scratch + (p.splits > 1 ? (p.splits * p.m * p.n * (p.up.data ? 8 : 4) + 15) / 16 * 16 : 0);
        digits = q + p.m * steps * 256;
        scales = (float*)(digits + p.m * steps * 16);
    }
};

template <u32 WORDS> DEV void prepare(const Args& p) {
    Prepared to(p);
    u32 task = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, i = task / to.steps, k = task % to.steps * 256 + threadIdx.x % 32 * 8;
    if (i >= p.m) return; // the whole warp
    Eight x = {};
    if (k < p.k) x = plain_eight(p.x.type, p.x.data + (i64)i * p.x.stride[1] * (p.x.type == F32 ? 4 : 2), k);
    quantize<WORDS>(x, to.q + task * 256, to.scales + task, to.digits + task * 16);
}

// 16 bytes that are read once.
DEV U4 streamed(const u8* from) {
    U4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}

// How many blocks have left their sums of some rows.
enum { MOST_GROUPS = 1024 };
__device__ u32 arrived[MOST_GROUPS];

// Up to NT * 8 rows of x to a block, with `p.splits` shares of k.
template <u32 T, u32 NT, u32 WARPS, u32 STAGES> DEV void few(const Args& p) {
    typedef Step<T> S;
    // A warp copies two steps at a time: K elements of 16 rows.
    enum : u32 {
        THREADS = WARPS * 32, STAGE = 16 * S::PITCH, COLUMNS = NT * 8, BATCH = 4, K = 512,
        CHUNKS = (2 * S::BYTES + (S::BYTES % 16 || S::N == 32 ? 29 : 0)) / 16
    };
    extern __shared__ __align__(128) u8 shared[];
    __shared__ u32 odd[WARPS], before;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % 4;
    bool gated = p.up.data != nullptr;
    // Which rows of x, which share of k, which 16 rows of w (of a gated pair 8 of each).
    u32 passes = ((u32)p.m + COLUMNS - 1) / COLUMNS, splits = (u32)p.splits, groups = gridDim.x / (passes * splits);
    u32 g = blockIdx.x % groups, split = blockIdx.x / groups % splits, first_i = blockIdx.x / groups / splits * COLUMNS;
    u32 m = (u32)p.m - first_i < COLUMNS ? (u32)p.m - first_i : COLUMNS;
    u32 steps = ((u32)p.k + K - 1) / K, first = steps * split / splits, count = steps * (split + 1) / splits - first;
    u32 high = gated ? 8 : 16, tiles = ((u32)p.n + high - 1) / high, first_tile = (u32)((u64)tiles * g / groups);
    tiles = (u32)((u64)tiles * (g + 1) / groups) - first_tile;
    // Steps of all tiles, one after the other, of which each warp has its share.
    u32 all = tiles * count, begin = all * warp / WARPS, end = all * (warp + 1) / WARPS;

    // Where row `r` of a tile begins.
    auto row = [&](u32 tile, u32 r) {
        bool second = gated && r >= 8;
        u64 j = (u64)(first_tile + tile) * high + (second ? r - 8 : r);
        if (j >= p.n) j = p.n - 1;
        const Tensor& w = second ? p.up : p.w;
        return w.data + (i64)j * w.stride[1] / S::N * (S::BYTES / (256 / S::N));
    };
    // Copies: 8 lanes to a row, 4 rows at a time.
    u8* ring = shared + warp * STAGES * STAGE;
    u32 ahead = begin, ahead_tile = count ? begin / count : 0, ahead_step = begin - ahead_tile * count;
    u32 skip = (first + ahead_step) * 2 * S::BYTES, used = (u32)p.k / S::N * (S::BYTES / (256 / S::N));
    const u8* from[4];
    auto turn = [&]() {
#pragma unroll
        for (u32 h = 0; h < 4; h++) from[h] = row(ahead_tile, lane / 8 + 4 * h) + skip;
    };
    turn();
    auto copy = [&](u32 slot) {
        if (ahead < end) {
            u32 bytes = used - skip < 2 * S::BYTES ? used - skip : 2 * S::BYTES;
#pragma unroll
            for (u32 h = 0; h < 4; h++) {
                u32 to = shared_address(ring) + slot * STAGE + (lane / 8 + 4 * h) * S::PITCH, skew = (u32)(u64)from[h] & 15;
#pragma unroll
                for (u32 chunk = 0; chunk < CHUNKS; chunk += 8) {
                    u32 offset = (chunk + lane % 8) * 16;
                    if (offset < bytes + skew) copy_async(to + offset, from[h] - skew + offset, true);
                }
                from[h] += 2 * S::BYTES;
            }
            ahead++, skip += 2 * S::BYTES;
            if (++ahead_step == count) {
                ahead_step = 0, ahead_tile++, skip = first * 2 * S::BYTES;
                turn();
            }
        }
        copies_end();
    };
#pragma unroll 1
    for (u32 s = 0; s < STAGES - 1; s++) copy(s);
    AFTER_LAUNCHES();

    // Rows of x lie so that all banks are in use.
    u32 pitch = count * 512 + 32, kept = NT == 1 ? m : (u32)COLUMNS;
    u8* q = shared + WARPS * STAGES * STAGE;
    float* scales = (float*)(q + kept * pitch);
    u8* digits = (u8*)(scales + COLUMNS * count * 2);
    float* sums = (float*)(digits + COLUMNS * count * 32); // two for each warp: of 16 rows, by row of x
    bool none = false, wide = p.x.type == F32;
    if (p.m > 1) { // by 16 bytes
        Prepared x(p);
        u32 blocks = x.steps - 2 * first < 2 * count ? x.steps - 2 * first : 2 * count, line = blocks * 16;
#pragma unroll 4
        for (u32 e = threadIdx.x; e < line * m; e += THREADS) {
            u32 i = e / line, chunk = e % line;
            *(U4*)(q + i * pitch + chunk * 16) = *(const U4*)(x.q + ((first_i + i) * x.steps + 2 * first) * 256 + chunk * 16);
        }
        for (u32 e = threadIdx.x; e < blocks * m; e += THREADS) {
            u32 i = e / blocks, block = e % blocks, at = (first_i + i) * x.steps + 2 * first + block;
            float scale = x.scales[at];
            scales[block * COLUMNS + i] = scale;
            *(U4*)(digits + (block * COLUMNS + i) * 16) = *(const U4*)(x.digits + at * 16);
            none |= scale != scale;
        }
    } else {
        for (u32 e = warp; e < 2 * count; e += WARPS * BATCH) {
            Eight x[BATCH];
#pragma unroll
            for (u32 b = 0; b < BATCH; b++) {
                u32 k = (2 * first + e + b * WARPS) * 256 + lane * 8;
                x[b] = {};
                if (e + b * WARPS < 2 * count && k < p.k) x[b] = plain_eight(p.x.type, p.x.data, k);
            }
#pragma unroll
            for (u32 b = 0; b < BATCH; b++) {
                u32 step = e + b * WARPS;
                if (step >= 2 * count) break;
                quantize<S::WORDS>(x[b], q + step * 256, scales + step * COLUMNS, digits + step * COLUMNS * 16, &none);
            }
        }
    }
    u32 some = __ballot_sync(0xffffffffu, none);
    if (lane == 0) odd[warp] = some;
    __syncthreads();
    u32 floats = 0;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) floats |= odd[w];

    Place place = place_of(p, 0);
    float* partial = (float*)p.scratch;
    auto output = [&](u32 tile, u32 r, u32 i, float sum, float up) {
        u64 j = (u64)(first_tile + tile) * high + r;
        if (j >= p.n) return;
        if (splits == 1) return finish(p, place, first_i + i, j, sum, up);
        u64 to = ((u64)split * p.m + first_i + i) * p.n + j;
        partial[to] = sum;
        if (gated) partial[to + p.splits * p.m * p.n] = up;
    };

    float y[NT][4] = {};
    u32 few_row = NT == 1 && lane / 4 >= kept ? 0 : lane / 4, slot = 0, tile = count ? begin / count : 0, step = begin - tile * count;
    float* mine = sums + warp * 32 * m;
    for (u32 e = begin; e < end && !floats; e++) {
        copies_wait<STAGES - 2>();
        __syncwarp();
        copy(slot == 0 ? STAGES - 1 : slot - 1);
        const u8 *a = ring + slot * STAGE + lane / 4 * S::PITCH, *b = a + 8 * S::PITCH;
        if (S::BYTES % 16 || S::N == 32) {
            a += (u32)(u64)(row(tile, lane / 4) + (first + step) * 2 * S::BYTES) & 15;
            b += (u32)(u64)(row(tile, lane / 4 + 8) + (first + step) * 2 * S::BYTES) & 15;
        }
#pragma unroll 1
        for (u32 h = 2 * step; h < 2 * step + 2; h++) {
            u32 k = (2 * first + h) * 256;
            if (k >= p.k) break;
            Few x = {q + few_row * pitch + h * 256, pitch, scales + h * COLUMNS, digits + (h * COLUMNS + lane / 4) * 16};
            S::template step<NT>(a, b, c, ((u32)p.k - k) / 32, x, y);
            a += S::BYTES, b += S::BYTES;
        }
        if (++slot == STAGES) slot = 0;
        if (++step < count && e + 1 < end) continue;
        // The warp's first tile, or another.
#pragma unroll
        for (u32 n = 0; n < NT; n++) {
#pragma unroll
            for (u32 u = 0; u < 4; u++) {
                u32 i = n * 8 + 2 * c + u % 2;
                if (i < m) mine[i * 16 + lane / 4 + u / 2 * 8] = y[n][u];
                y[n][u] = 0.0f;
            }
        }
        if (tile * count >= begin && step == count) { // no other warp has steps of it
            __syncwarp();
            for (u32 o = lane; o < high * m; o += 32) {
                u32 r = o % high, i = o / high;
                output(tile, r, i, mine[i * 16 + r], gated ? mine[i * 16 + r + 8] : 0.0f);
            }
            __syncwarp();
        }
        mine = sums + (warp * 2 + 1) * 16 * m, step = 0, tile++;
    }
    copies_wait<0>();
    __syncthreads();

    for (u32 e = threadIdx.x; e < tiles * high * m; e += THREADS) {
        u32 r = e % high, i = e / high % m, t = e / (high * m);
        float both[2] = {0.0f, 0.0f};
        if (floats) {
            const u8* x = p.x.data + (i64)(first_i + i) * p.x.stride[1] * (wide ? 4 : 2);
#pragma unroll 1
            for (u32 f = 0; f < (gated ? 2 : 1); f++) {
                const u8* w = row(t, r + 8 * f);
                float sum = 0.0f;
#pragma unroll 1
                for (u32 k = first * K; k < (first + count) * K && k < p.k; k += 8) sum = dot(Only<T>::eight(T, w, k), plain_eight(p.x.type, x, k), sum);
                if (f) both[1] = sum;
                else both[0] = sum;
            }
        } else {
            // The warps that had steps of this tile, in order.
            u32 from = t * count, to = from + count, w = from * WARPS / all;
            while (all * (w + 1) / WARPS <= from) w++;
            if (all * w / WARPS <= from && all * (w + 1) / WARPS >= to) continue; // one had all
            for (; w < WARPS && all * w / WARPS < to; w++) {
                u32 begin = all * w / WARPS;
                const float* s = sums + (w * 2 + (begin / count < t ? 1 : 0)) * 16 * m + i * 16 + r;
                if (begin == all * (w + 1) / WARPS) continue;
                both[0] += s[0];
                if (gated) both[1] += s[8];
            }
        }
        output(t, r, i, both[0], both[1]);
    }
    if (splits == 1) return;
    __threadfence();
    __syncthreads();
    u32* count_of = arrived + first_i / COLUMNS * groups + g;
    if (threadIdx.x == 0) before = atomicAdd(count_of, 1u);
    __syncthreads();
    if (before + 1 < splits) return;
    __threadfence();
    if (threadIdx.x == 0) *count_of = 0; // for the next launch
    for (u32 e = threadIdx.x; e < tiles * high * m; e += THREADS) {
        u32 r = e % high, i = first_i + e / high % m, t = e / (high * m);
        u64 j = (u64)(first_tile + t) * high + r;
        if (j >= p.n) continue;
        float sum = 0.0f, up = 0.0f;
        for (u64 s = 0; s < p.splits; s++) {
            sum += __ldcg(partial + (s * p.m + i) * p.n + j);
            if (gated) up += __ldcg(partial + ((p.splits + s) * p.m + i) * p.n + j);
        }
        finish(p, place, i, j, sum, up);
    }
}

// 16-bit floats, or x of these by f8e4m3: 16 rows of w to a block whose warps share k, from global memory to registers. A lane has 16 bytes of a
// row of w at a time. Sums of fp8 get their scale every 64 of k, where blocks of 128 by 128 have one.
template <class M, u32 NT, bool FP8> DEV void few_floats(const Args& p) {
    enum : u32 { COLUMNS = NT * 8, WARPS = 8, DEPTH = 4, ELEM = FP8 ? 1 : 2, STEP = 64 / ELEM };
    __shared__ float sums[WARPS][COLUMNS][16];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % 4, m = (u32)p.m;
    bool gated = p.up.data != nullptr;
    u32 high = gated ? 8 : 16;
    const u8 *w[2], *x[NT];
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        u64 j = (u64)blockIdx.x * high + lane / 4 + (gated ? 0 : 8 * h);
        const Tensor& t = gated && h ? p.up : p.w;
        w[h] = t.data + (i64)(j < p.n ? j : p.n - 1) * t.stride[1] * ELEM + c * 16;
    }
#pragma unroll
    for (u32 n = 0; n < NT; n++) {
        u32 i = n * 8 + lane / 4;
        x[n] = p.x.data + (i64)(i < m ? i : m - 1) * p.x.stride[1] * 2 + c * (STEP / 2);
    }
    float y[NT][4] = {};
    U4 next[DEPTH][2];
    auto load = [&](u32 k) {
#pragma unroll
        for (u32 d = 0; d < DEPTH; d++) {
            bool inside = k + STEP * d + STEP / 4 * c < p.k;
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                next[d][h] = {};
                if (inside) next[d][h] = streamed(w[h] + (k + STEP * d) * ELEM);
            }
        }
    };
    load(warp * STEP * DEPTH);
    AFTER_LAUNCHES();
#pragma unroll 1
    for (u32 k = warp * STEP * DEPTH; k < p.k; k += STEP * DEPTH * WARPS) {
        U4 a[DEPTH][2];
#pragma unroll
        for (u32 d = 0; d < DEPTH; d++) a[d][0] = next[d][0], a[d][1] = next[d][1];
        load(k + STEP * DEPTH * WARPS);
#pragma unroll
        for (u32 d = 0; d < DEPTH; d++) {
            bool inside = k + STEP * d + STEP / 4 * c < p.k;
            float part[NT][4] = {};
            float(&to)[NT][4] = FP8 ? part : y;
#pragma unroll
            for (u32 e = 0; e < 2 / ELEM; e++) {
                U4 f[2];
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    if constexpr (FP8) f[h] = e ? eight_halves<M>(a[d][h].z, a[d][h].w) : eight_halves<M>(a[d][h].x, a[d][h].y);
                    else f[h] = a[d][h];
                }
                u32 first[4] = {f[0].x, f[1].x, f[0].y, f[1].y}, second[4] = {f[0].z, f[1].z, f[0].w, f[1].w};
#pragma unroll
                for (u32 n = 0; n < NT; n++) {
                    U4 b = {};
                    if (inside) b = *(const U4*)(x[n] + (k + STEP * d) * 2 + e * 16);
                    M::mma(to[n], first, b.x, b.y);
                    M::mma(to[n], second, b.z, b.w);
                }
            }
            if (FP8) {
                float scale = 1.0f;
                if (p.w_scales == OF_BLOCKS && k + STEP * d < p.k) scale = block_scale(p, (u64)blockIdx.x * high, k + STEP * d);
#pragma unroll
                for (u32 n = 0; n < NT; n++) {
#pragma unroll
                    for (u32 u = 0; u < 4; u++) y[n][u] += scale * part[n][u];
                }
            }
        }
    }
#pragma unroll
    for (u32 n = 0; n < NT; n++) {
#pragma unroll
        for (u32 u = 0; u < 4; u++) sums[warp][n * 8 + 2 * c + u % 2][lane / 4 + u / 2 * 8] = y[n][u];
    }
    __syncthreads();
    Place place = place_of(p, 0);
    for (u32 e = threadIdx.x; e < high * m; e += WARPS * 32) {
        u32 i = e / high, r = e % high;
        u64 j = (u64)blockIdx.x * high + r;
        float sum = 0.0f, up = 0.0f;
#pragma unroll
        for (u32 v = 0; v < WARPS; v++) {
            sum += sums[v][i][r];
            if (gated) up += sums[v][i][r + 8];
        }
        if (j < p.n) finish(p, place, i, j, sum, up);
    }
}
