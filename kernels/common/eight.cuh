// Eight neighbouring elements of a row, from the k-th on, of rows that begin at multiples of 16 bytes: by type, or of one format only.
#pragma once
#include "product.cuh"
#include "mma.cuh"

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

// Whether one of four bytes is the NaN of f8e4m3: all ones but the sign.
DEV bool has_nan(u32 w) {
    return ((w & EACH(0x7f)) + EACH(1)) & EACH(0x80);
}
// Four of f8e4m3. The fields of an f32, whose bias is 120 more.
DEV Four f8e4m3_four(u32 w) {
    Four f;
#pragma unroll
    for (u32 u = 0; u < 4; u++) f.x[u] = __uint_as_float((u32)((int)(w << (24 - 8 * u)) >> 4) & 0x87f00000u) * __uint_as_float(0x7b800000u);
    if (has_nan(w)) {
#pragma unroll
        for (u32 u = 0; u < 4; u++) f.x[u] = f8e4m3_decode((u8)(w >> 8 * u));
    }
    return f;
}
// Four of f8e5m2: the upper bytes of f16.
DEV Four f8e5m2_four(u32 w) {
    u32 low = __byte_perm(w, 0, 0x1404), high = __byte_perm(w, 0, 0x3424);
    return {f16_decode((u16)low), f16_decode((u16)(low >> 16)), f16_decode((u16)high), f16_decode((u16)(high >> 16))};
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

// Of these and fp8, and the bytes of an element.
DEV Eight float_eight(i64 type, const u8* row, u32 k) {
    if (type != F8E4M3 && type != F8E5M2) return plain_eight(type, row, k);
    const u32* w = (const u32*)(row + k);
    if (type == F8E4M3) return {f8e4m3_four(w[0]), f8e4m3_four(w[1])};
    return {f8e5m2_four(w[0]), f8e5m2_four(w[1])};
}
DEV u32 float_bytes(i64 type) {
    return type == F32 ? 4 : type == F8E4M3 || type == F8E5M2 ? 1 : 2;
}

// Eight elements in bf16.
DEV U4 packed(const Eight& e) {
    return {pack_bf16(e.a.x[0], e.a.x[1]), pack_bf16(e.a.x[2], e.a.x[3]), pack_bf16(e.b.x[0], e.b.x[1]), pack_bf16(e.b.x[2], e.b.x[3])};
}
// Times the scale of w's row j at k, where blocks of 128 by 128 have one.
DEV void scale_eight(const Args& p, u64 j, u32 k, Eight& e) {
    float scale = block_scale(p, j, k);
#pragma unroll
    for (u32 u = 0; u < 4; u++) e.a.x[u] *= scale, e.b.x[u] *= scale;
}
DEV void scale_packed(const Args& p, u64 j, u32 k, U4& e) {
    float scale = block_scale(p, j, k);
    u32 w[4] = {e.x, e.y, e.z, e.w};
#pragma unroll
    for (u32 u = 0; u < 4; u++) w[u] = pack_bf16(__uint_as_float(w[u] << 16) * scale, __uint_as_float(w[u] & 0xffff0000u) * scale);
    e = {w[0], w[1], w[2], w[3]};
}

// Two of f8e4m3 in the upper bytes of halves, as bf16 or f16: their fields under another bias, times what makes up for it.
DEV u32 widened(Bf16, u32 t) {
    u32 r, fields = (t >> 4 & 0x07f007f0u) | (t & 0x80008000u);
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(fields), "r"(0x7b807b80u), "r"(0x80008000u));
    return r;
}
DEV u32 widened(Half, u32 t) {
    u32 r, fields = (t >> 1 & 0x3f803f80u) | (t & 0x80008000u);
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(fields), "r"(0x5c005c00u), "r"(0x80008000u));
    return r;
}
// Eight of them.
template <class M> DEV U4 eight_halves(u32 low, u32 high) {
    u32 h[4];
#pragma unroll
    for (u32 u = 0; u < 4; u++) {
        u32 t = __byte_perm(u < 2 ? low : high, 0, u % 2 ? 0x3424 : 0x1404);
        h[u] = widened(M(), t);
    }
    if (has_nan(low) || has_nan(high)) {
#pragma unroll
        for (u32 u = 0; u < 4; u++) {
            u32 t = __byte_perm(u < 2 ? low : high, 0, u % 2 ? 0x3424 : 0x1404) & 0x7f007f00u;
            if ((t & 0xffffu) == 0x7f00u) h[u] |= 0x7fffu;
            if (t >> 16 == 0x7f00u) h[u] |= 0x7fff0000u;
        }
    }
    return {h[0], h[1], h[2], h[3]};
}

// Blocks as bytes with what they share: eight elements always share scale and offset.
struct Bytes {
    u32 a, b;
    float scale, offset;
};

template <u32 T> struct Only {
    enum { SCALED = 0, FP8_X = 0 }; // whether it serves scales of blocks of 128 by 128, and x of fp8
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
    static DEV U4 halves(i64 type, const u8* row, u32 k) {
        return packed(eight(type, row, k));
    }
};
struct Any {
    enum { SCALED = 1, FP8_X = 1 };
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
        if (type < Q4_0) return float_eight(type, row, k);
        Bytes q = quads(type, row, k);
        return {floats({q.a, q.scale, q.offset}), floats({q.b, q.scale, q.offset})};
    }
    static DEV U4 halves(i64 type, const u8* row, u32 k) {
        return packed(eight(type, row, k));
    }
};
// Of f8e4m3.
struct Fp8 {
    enum { SCALED = 1, FP8_X = 0 };
    static DEV u32 block(const Args&) {
        return 1;
    }
    static DEV u32 bytes(const Args&) {
        return 1;
    }
    static DEV Bytes quads(i64, const u8*, u32) {
        return {};
    }
    static DEV Eight eight(i64, const u8* row, u32 k) {
        return float_eight(F8E4M3, row, k);
    }
    static DEV U4 halves(i64, const u8* row, u32 k) {
        const u32* w = (const u32*)(row + k);
        return eight_halves<Bf16>(w[0], w[1]);
    }
};
