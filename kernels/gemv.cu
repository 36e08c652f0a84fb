// The products of matmul.cu for up to 8 rows of x, of rows of k that begin at multiples of 16 bytes: a decoding model's weights pass
// once, at the speed of memory if nothing else is slower. Groups: each row meets its own weight.
//
// A warp per row of w (and of up); a lane takes 8 neighbouring k, a warp 256, then the next. Two ways:
// `exact_*`: everything in f32: w decoded once (and scaled, where blocks of 128 by 128 have scales) and multiplied with all rows of x. About 20 + 10 m instructions per 8 elements.
// `dot_*` (Numerics::Fast): `quantize` has written x as signed bytes with a scale per 32, so four products are one instruction (dp4a)
// and blocks are unpacked to bytes, not to floats. About 15 + 7 m instructions per 8 elements. Where 32 numbers have no scale (not all
// finite, or all tiny) these are multiplied as they are.
// `any` serves all types by a switch per 8 elements; the commonest formats have kernels of their own.
// Traffic: w once, x from the L1 cache. Measured on an H200, 14336 x 4096, m = 1: Q4_K (33 MB) dot 42 us with `quantize`, exact 48; Q8_0 dot
// 37; bf16 45; f8e4m3 41. At m = 8 197 (f8e4m3 179), where bound by instructions: gemm_few.cu has these formats at 24.
#include "eight.cuh"

enum { THREADS = 128 };

// Of each 32 elements of x: their scale (NaN where they have none). Behind the bytes of all rows in the scratch memory.
DEV const float* scales_of(const Args& p) {
    return (const float*)(p.scratch + p.m * p.k);
}

KERNEL void __launch_bounds__(THREADS) quantize(const __grid_constant__ Args p) {
    u64 e = ((u64)blockIdx.x * THREADS + threadIdx.x) * 8, all = p.m * p.k;
    bool inside = e < all; // a whole 32 is in or out
    u64 i = inside ? e / p.k : 0, k = inside ? e % p.k : 0;
    Eight x = plain_eight(p.x.type, p.x.data + (i64)i * p.x.stride[1] * (p.x.type == F32 ? 4 : 2), (u32)k);
    float largest = 0.0f;
    bool odd = false;
#pragma unroll
    for (u32 u = 0; u < 8; u++) {
        float a = fabsf(u < 4 ? x.a.x[u] : x.b.x[u - 4]);
        odd |= !(a < INFINITE);
        largest = fmaxf(largest, a);
    }
    if (odd) largest = INFINITE;
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    if (!inside) return;
    float scale = largest * (1.0f / 127.0f), inverse = 127.0f / largest;
    if (largest == 0.0f) inverse = 0.0f;
    else if (largest < 1e-30f || largest == INFINITE) scale = NOT_A_NUMBER, inverse = 0.0f;
    u32 q[2] = {0, 0};
#pragma unroll
    for (u32 u = 0; u < 8; u++) {
        float v = (u < 4 ? x.a.x[u] : x.b.x[u - 4]) * inverse;
        q[u / 4] |= ((u32)__float2int_rn(v) & 0xff) << u % 4 * 8;
    }
    u32* to = (u32*)(p.scratch + e);
    to[0] = q[0], to[1] = q[1];
    if (e % 32 == 0) ((float*)(p.scratch + all))[e / 32] = scale;
}

// The sums of one row of w with ROWS rows of x, from i on: over the whole warp.
template <u32 ROWS, bool BYTES, class Weight> DEV void sums_of(const Args& p, const u8* w, u64 j, u64 i, u32 rows, float (&sum)[ROWS]) {
    u32 size = p.x.type == F32 ? 4 : 2;
    const float* scales = scales_of(p);
#pragma unroll 2
    for (u32 k = threadIdx.x % 32 * 8; k < p.k; k += 256) {
        if (BYTES) {
            Bytes q = Weight::quads(p.w.type, w, k);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                if (r >= rows) break;
                u64 at = (i + r) * p.k + k;
                const u32* x = (const u32*)(p.scratch + at);
                float scale = scales[at / 32];
                u32 low = x[0], high = x[1];
                if (scale == scale) {
                    int products = dp4a(q.b, high, dp4a(q.a, low, 0)), ones = dp4a(EACH(1), high, dp4a(EACH(1), low, 0));
                    sum[r] += scale * (q.scale * (float)products + q.offset * (float)ones);
                } else {
                    Eight f = {floats({q.a, q.scale, q.offset}), floats({q.b, q.scale, q.offset})};
                    sum[r] = dot(f, plain_eight(p.x.type, p.x.data + (i64)(i + r) * p.x.stride[1] * size, k), sum[r]);
                }
            }
        } else {
            Eight f = Weight::eight(p.w.type, w, k);
            if (Weight::SCALED && p.w_scales == OF_BLOCKS) scale_eight(p, j, k, f);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                if (r >= rows) break;
                sum[r] = dot(f, plain_eight(p.x.type, p.x.data + (i64)(i + r) * p.x.stride[1] * size, k), sum[r]);
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) sum[r] = warp_sum(sum[r]);
}

template <u32 ROWS, bool BYTES, class Weight> DEV void gemv(const Args& p) {
    u64 output = (u64)blockIdx.x * (THREADS / 32) + threadIdx.x / 32; // a row of w; of groups, for one row of x
    u64 j = output % p.n, i = output / p.n;
    u32 rows = p.groups ? 1 : (u32)p.m;
    if (i >= (p.groups ? p.m : 1)) return; // the whole warp
    i64 b = p.groups ? group_of(p, i) : 0;
    float sum[ROWS] = {}, up[ROWS] = {};
#pragma unroll 1
    for (u32 factor = 0; factor < (p.up.data ? 2 : 1) && b >= 0; factor++) {
        const u8* data = factor ? p.up.data : p.w.data;
        i64 row = factor ? j * p.up.stride[1] : j * p.w.stride[1];
        if (p.groups) row += b * (factor ? p.up.stride[2] : p.w.stride[2]);
        float s[ROWS] = {};
        sums_of<ROWS, BYTES, Weight>(p, data + row / Weight::block(p) * Weight::bytes(p), j, i, rows, s);
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            if (factor) up[r] = s[r];
            else sum[r] = s[r];
        }
    }
    // A lane per row of x.
    float y = 0.0f, u = 0.0f;
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        if (threadIdx.x % 32 == r) y = sum[r], u = up[r];
    }
    if (threadIdx.x % 32 < rows) finish(p, place_of(p, b), i + threadIdx.x % 32, j, y, u);
}

#define ENTRY(name, bytes, ...)                                                                                                   \
    KERNEL void __launch_bounds__(THREADS) name##_1(const __grid_constant__ Args p) {                                             \
        gemv<1, bytes, __VA_ARGS__>(p);                                                                                           \
    }                                                                                                                             \
    KERNEL void __launch_bounds__(THREADS, 4) name##_8(const __grid_constant__ Args p) {                                          \
        gemv<8, bytes, __VA_ARGS__>(p);                                                                                           \
    }
ENTRY(exact_any, false, Any)
ENTRY(exact_q4_0, false, Only<Q4_0>)
ENTRY(exact_q8_0, false, Only<Q8_0>)
ENTRY(exact_q4_k, false, Only<Q4_K>)
ENTRY(exact_q6_k, false, Only<Q6_K>)
ENTRY(exact_f8e4m3, false, Fp8)
ENTRY(dot_any, true, Any)
ENTRY(dot_q4_0, true, Only<Q4_0>)
ENTRY(dot_q8_0, true, Only<Q8_0>)
ENTRY(dot_q4_k, true, Only<Q4_K>)
ENTRY(dot_q6_k, true, Only<Q6_K>)
