// Elements that are read before they are looked at. A load that depends on a branch is waited for where the branch ends: what should be under way across one
// is read as bits by the same instructions whatever its type, and decoded later.
#pragma once
#include "elements.cuh"

// The four bytes that an f32, f16 or bf16 lies in.
struct Word {
    u32 bits, upper; // upper: whether a 16-bit element is the upper half
};
DEV Word word_of(const Tensor& t, i64 i) {
    u64 at = (u64)t.data + (u64)(t.type == F32 ? i * 4 : i * 2);
    return {*(const u32*)(at & ~3ull), (u32)at & 2};
}
DEV float decode(const Tensor& t, Word w) {
    u16 half = (u16)(w.upper ? w.bits >> 16 : w.bits);
    float narrow = t.type == F16 ? f16_decode(half) : bf16_decode(half);
    return t.type == F32 ? __uint_as_float(w.bits) : narrow;
}

// The 16 or 8 bytes of four neighbours that lie at a multiple of their size.
struct Bits {
    u32 a, b, c, d;
};
DEV Bits bits_of(const Tensor& t, i64 i) {
    struct alignas(8) Half {
        u32 a, b;
    };
    // The second half of 16-bit elements is the first again.
    u64 at = (u64)t.data + (u64)(t.type == F32 ? i * 4 : i * 2);
    Half low = *(const Half*)at, high = *(const Half*)(at + (t.type == F32 ? 8 : 0));
    return {low.a, low.b, high.a, high.b};
}
DEV Floats<4> decode(const Tensor& t, const Bits& r) {
    if (t.type == F32) return {__uint_as_float(r.a), __uint_as_float(r.b), __uint_as_float(r.c), __uint_as_float(r.d)};
    if (t.type == F16) return {f16_decode((u16)r.a), f16_decode((u16)(r.a >> 16)), f16_decode((u16)r.b), f16_decode((u16)(r.b >> 16))};
    return {bf16_decode((u16)r.a), bf16_decode((u16)(r.a >> 16)), bf16_decode((u16)r.b), bf16_decode((u16)(r.b >> 16))};
}
// Four neighbours of a row from the j-th on, with zeros from `end` on.
DEV Floats<4> four_of(const Tensor& x, i64 row, u64 j, u64 end, bool whole) {
    if (whole && j + 4 <= end) return load_floats<4>(x, row * x.stride[1] + j);
    Floats<4> v = {};
#pragma unroll
    for (u32 u = 0; u < 4; u++) {
        if (j + u < end) v.x[u] = load_float(x, row * x.stride[1] + (j + u) * x.stride[0]);
    }
    return v;
}
// To four neighbours of a row from the j-th on, as far as `end`.
DEV void store_four(const Tensor& x, i64 row, u64 j, u64 end, bool whole, const Floats<4>& v) {
    if (whole && j + 4 <= end) return store_floats<4>(x, row * x.stride[1] + j, v);
#pragma unroll
    for (u32 u = 0; u < 4; u++) {
        if (j + u < end) store(x, row * x.stride[1] + (j + u) * x.stride[0], v.x[u]);
    }
}
DEV bool whole_fours(const Tensor& x) {
    return x.stride[0] == 1 && x.stride[1] % 4 == 0 && in_fours(x);
}
