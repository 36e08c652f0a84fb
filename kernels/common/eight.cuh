// Eight neighbouring elements of a row, from the k-th on, of rows that begin at multiples of 16 bytes: by type, or of one format only.
#pragma once
#include "product.cuh"

struct Eight {
    Four a, b;
};
DEV float dot(const Eight& a, const Eight& b, float sum) {
#pragma unroll
    for (u32 u = 0; u < 4; u++) sum += a.a.x[u] * b.a.x[u];
#pragma unroll
    for (u32 u = 0; u < 4; u++) sum += a.b.x[u] * b.b.x[u];
    return sum;
}
// Adds the products of four bytes.
DEV int dp4a(u32 a, u32 b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Of f32, f16 or bf16.
DEV Eight plain_eight(i64 type, const u8* row, u32 k) {
    if (type == F32) {
        U4 x = *(const U4*)(row + k * 4), y = *(const U4*)(row + k * 4 + 16);
        return {{__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z), __uint_as_float(x.w)},
                {__uint_as_float(y.x), __uint_as_float(y.y), __uint_as_float(y.z), __uint_as_float(y.w)}};
    }
    U4 x = *(const U4*)(row + k * 2);
    u32 w[4] = {x.x, x.y, x.z, x.w};
    float f[8];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        f[2 * i] = type == F16 ? f16_decode((u16)w[i]) : __uint_as_float(w[i] << 16);
        f[2 * i + 1] = type == F16 ? f16_decode((u16)(w[i] >> 16)) : __uint_as_float(w[i] & 0xffff0000u);
    }
    return {{f[0], f[1], f[2], f[3]}, {f[4], f[5], f[6], f[7]}};
}

// Blocks as bytes with what they share: eight elements always share scale and offset.
struct Bytes {
    u32 a, b;
    float scale, offset;
};

template <u32 T> struct Only {
    static DEV u32 block(const Args&) {
        return Format<T>::N;
    }
    static DEV u32 bytes(const Args&) {
        return Format<T>::BYTES;
    }
    static DEV Bytes quads(i64, const u8* row, u32 k) {
        typedef Format<T> F;
        const u8* block = row + k / F::N * F::BYTES;
        Quad a = F::template quad<F::ALIGN>(block, k % F::N), b = F::template quad<F::ALIGN>(block, k % F::N + 4);
        return {a.q, b.q, a.scale, a.offset};
    }
    static DEV Eight eight(i64 type, const u8* row, u32 k) {
        Bytes q = quads(type, row, k);
        return {floats({q.a, q.scale, q.offset}), floats({q.b, q.scale, q.offset})};
    }
};
struct Any {
    static DEV u32 block(const Args& p) {
        return p.w_block;
    }
    static DEV u32 bytes(const Args& p) {
        return p.w_bytes;
    }
    static DEV Bytes quads(i64 type, const u8* row, u32 k) {
        switch (type) {
#define CASE(T)                                                                                                                   \
    case T: return Only<T>::quads(type, row, k);
            FORMATS(CASE)
#undef CASE
            default: return {};
        }
    }
    static DEV Eight eight(i64 type, const u8* row, u32 k) {
        if (type < Q4_0) return plain_eight(type, row, k);
        Bytes q = quads(type, row, k);
        return {floats({q.a, q.scale, q.offset}), floats({q.b, q.scale, q.offset})};
    }
};
