// Where elements lie, and neighbouring ones at once.
#pragma once
#include "types.cuh"

// The next coordinate of element `i`, innermost first; `i` becomes what is left of it.
DEV i64 coordinate(u64& i, u64 extent) {
    u64 rest = 0;
    if (i >= extent) rest = (i | extent) >> 32 ? i / extent : (u32)i / (u32)extent;
    i64 at = (i64)(i - rest * extent);
    i = rest;
    return at;
}

// Where a row is along the five dimensions behind its own.
struct Coordinates {
    i64 at[5];

    // The offset of its first element.
    DEV i64 in(const Tensor& t) const {
        i64 offset = 0;
#pragma unroll
        for (int d = 0; d < 5; d++) offset += at[d] * t.stride[d + 1];
        return offset;
    }
};
DEV Coordinates coordinates(u64 row, const u64 (&extent)[6]) {
    Coordinates c;
#pragma unroll
    for (int d = 0; d < 5; d++) c.at[d] = coordinate(row, extent[d]);
    return c;
}

// Whether fours of elements lie at multiples of their size, where strides are multiples of four. True of an absent operand.
DEV bool in_fours(const Tensor& t) {
    return ((u64)t.data & (t.type == F32 ? 15 : 7)) == 0;
}

// W neighbours, 1 or 4, as f32.
template <int W> struct alignas(4 * W) Floats {
    float x[W];
};
// As they lie in memory: several may be loaded before the first is decoded, which waits for it.
template <int W> struct alignas(4 * W) Raw {
    u32 x[W];
};
template <int W> DEV Raw<W> load_raw(const Tensor& t, i64 i) {
    if (t.type == F32) return *(const Raw<W>*)((const float*)t.data + i);
    if constexpr (W == 1) return {((const u16*)t.data)[i]};
    else {
        struct alignas(8) Pairs {
            u32 a, b;
        } v = *(const Pairs*)((const u16*)t.data + i);
        return {v.a, v.b};
    }
}
template <int W> DEV Floats<W> decoded(const Tensor& t, const Raw<W>& r) {
    Floats<W> y;
#pragma unroll
    for (int u = 0; u < W; u++) {
        u16 half = (u16)(r.x[u / 2] >> u % 2 * 16);
        y.x[u] = t.type == F32 ? __uint_as_float(r.x[u]) : t.type == F16 ? f16_decode(half) : bf16_decode(half);
    }
    return y;
}
template <int W> DEV Floats<W> load_floats(const Tensor& t, i64 i) {
    if constexpr (W == 1) return {load_float(t, i)};
    else if (t.type == F32) return *(const Floats<4>*)((const float*)t.data + i);
    else {
        struct alignas(8) Pairs {
            u32 a, b;
        } v = *(const Pairs*)((const u16*)t.data + i);
        if (t.type == F16) return {f16_decode((u16)v.a), f16_decode((u16)(v.a >> 16)), f16_decode((u16)v.b), f16_decode((u16)(v.b >> 16))};
        return {bf16_decode((u16)v.a), bf16_decode((u16)(v.a >> 16)), bf16_decode((u16)v.b), bf16_decode((u16)(v.b >> 16))};
    }
}
template <int W> DEV void store_floats(const Tensor& t, i64 i, const Floats<W>& v) {
    if constexpr (W == 1) store(t, i, v.x[0]);
    else if (t.type == F32) *(Floats<4>*)((float*)t.data + i) = v;
    else {
        struct alignas(8) Pairs {
            u32 a, b;
        };
        u16 h[4];
#pragma unroll
        for (int u = 0; u < 4; u++) h[u] = t.type == F16 ? f16_encode(v.x[u]) : bf16_encode(v.x[u]);
        *(Pairs*)((u16*)t.data + i) = {h[0] | (u32)h[1] << 16, h[2] | (u32)h[3] << 16};
    }
}
