// One decode function per block format, in steps of four neighbouring elements: `quad` gives four signed bytes, and the scale
// and offset they share, so that an element is `scale * q + offset`. Products with bytes (dp4a) take `q` as it is; everything
// else takes `four`. `b` is the block, `j` the first of the four elements within it, a multiple of 4. Layouts are drawn in
// src/quant/. Products of scales and levels are exact in f32 and only the sum rounds, so contraction into fused multiply-adds
// changes no bit.
//
// `A`: the blocks' alignment that may be relied on; 1 reads byte by byte, since tensors of blocks may begin at any byte.
#pragma once
#include "grids.cuh" // GRID_IQ1_S and so on: made by tools/ptx of src/quant/grid/

struct Quad {
    u32 q; // four signed bytes, the first lowest
    float scale, offset;
};
struct Four {
    float x[4];
};

template <u32 A> DEV u32 two(const u8* b) {
    return A % 2 == 0 ? *(const u16*)b : b[0] | b[1] << 8;
}
template <u32 A> DEV u32 word(const u8* b) {
    return A % 4 == 0 ? *(const u32*)b : two<A>(b) | two<A>(b + 2) << 16;
}
template <u32 A> DEV float half_at(const u8* b) {
    return f16_decode((u16)two<A>(b));
}
// `x * q + NOTHING` is `x * q`, its sign at zero included.
#define NOTHING __uint_as_float(0x80000000u)

// Arithmetic on four bytes at once.
#define EACH(byte) ((byte) * 0x01010101u)
DEV u32 bits(u32 word, u32 shift, u32 mask) {
    return word >> shift & EACH(mask);
}
// Bytes below 128, minus a constant up to 128.
DEV u32 minus(u32 q, u32 c) {
    return ((q | EACH(0x80)) - EACH(c)) ^ EACH(0x80);
}
// Bits 0 to 3, a byte each.
DEV u32 flags(u32 x) {
    return (x & 15) * 0x00204081u & EACH(1);
}
// Bytes from 1 to 127, negative where the bit is set.
DEV u32 signed_by(u32 q, u32 signs) {
    u32 f = flags(signs);
    return (q ^ f * 255) + f;
}
// The low nibbles of 16 bytes, then the high ones.
template <u32 A> DEV u32 nibbles(const u8* b, u32 j) {
    return bits(word<A>(b + (j & 15)), j >> 4 << 2, 15);
}
// Each byte below 16 becomes a byte of the table.
DEV u32 looked_up(u32 q, u32 t0, u32 t1, u32 t2, u32 t3) {
    u32 s = q & EACH(7);
    s = (s | s >> 4) & 0x00ff00ffu;
    s = (s | s >> 8) & 0xffffu;
    u32 high = (q >> 3 & EACH(1)) * 255;
    return (__byte_perm(t0, t1, s) & ~high) | (__byte_perm(t2, t3, s) & high);
}
// Eight signs from seven: the last makes the number of negatives even.
DEV u32 eighth(u32 signs) {
    return (signs & 127) | (__popc(signs & 127) & 1) << 7;
}
// Coordinates of a point of 8, four from j on, a byte each.
DEV u32 pairs(u32 point, u32 j) {
    u32 p = point >> 2 * (j & 4);
    return (p & 3) | (p & 0xc) << 6 | (p & 0x30) << 12 | (p & 0xc0) << 18;
}
DEV u32 wide(u32 point, u32 j) { // 8, 25, 43
    u32 c = pairs(point, j);
    return EACH(8) + 17 * c + (c >> 1 & EACH(1));
}
// Coordinates of a point of 4.
DEV u32 octal(u32 p) {
    return (p & 7) | (p & 0x70) << 4 | (p & 0x700) << 8 | (p & 0x7000) << 12;
}
// 8 (coordinate - 1) + 1, or - 1 where the shift is negative: eight times IQ1's numbers.
DEV u32 shifted(u32 point, u32 j, bool negative) {
    return minus(8 * pairs(point, j), negative ? 9 : 7);
}
// Scale and minimum of group g, 6 bits each, of the 12 bytes at b.
DEV void k_group(const u8* b, u32 g, float& scale, float& minimum) {
    u32 low = b[g & 3], high = b[4 + (g & 3)], last = b[8 + (g & 3)];
    u32 s = g < 4 ? low & 63 : (last & 15) | low >> 6 << 4;
    u32 m = g < 4 ? high & 63 : last >> 4 | high >> 6 << 4;
    scale = (float)s, minimum = (float)m;
}

template <u32 T> struct Format;
#define FORMAT(T, elements, bytes_)                                                                                               \
    template <> struct Format<T> {                                                                                                \
        enum : u32 { N = elements, BYTES = bytes_, ALIGN = bytes_ & -(bytes_) & 15 ? bytes_ & -(bytes_) : 16 };                   \
        template <u32 A> static DEV Quad quad(const u8* b, u32 j);                                                                \
    };                                                                                                                            \
    template <u32 A> DEV Quad Format<T>::quad(const u8* b, u32 j)
// Every format, for tables of functions.
#define FORMATS(F)                                                                                                                \
    F(Q4_0) F(Q4_1) F(Q5_0) F(Q5_1) F(Q8_0) F(Q8_1) F(Q2_K) F(Q3_K) F(Q4_K) F(Q5_K) F(Q6_K) F(Q8_K) F(IQ1_S) F(IQ1_M) F(IQ2_XXS)  \
    F(IQ2_XS) F(IQ2_S) F(IQ3_XXS) F(IQ3_S) F(IQ4_NL) F(IQ4_XS) F(TQ1_0) F(TQ2_0) F(MXFP4) F(NVFP4) F(Q1_0)

FORMAT(Q4_0, 32, 18) {
    return {minus(nibbles<A>(b + 2, j), 8), half_at<A>(b), NOTHING};
}
FORMAT(Q4_1, 32, 20) {
    return {nibbles<A>(b + 4, j), half_at<A>(b), half_at<A>(b + 2)};
}
FORMAT(Q5_0, 32, 22) {
    u32 q = nibbles<A>(b + 6, j) | flags(word<A>(b + 2) >> j) << 4;
    return {minus(q, 16), half_at<A>(b), NOTHING};
}
FORMAT(Q5_1, 32, 24) {
    u32 q = nibbles<A>(b + 8, j) | flags(word<A>(b + 4) >> j) << 4;
    return {q, half_at<A>(b), half_at<A>(b + 2)};
}
FORMAT(Q8_0, 32, 34) {
    return {word<A>(b + 2 + j), half_at<A>(b), NOTHING};
}
FORMAT(Q8_1, 32, 36) {
    return {word<A>(b + 4 + j), half_at<A>(b), NOTHING};
}
FORMAT(Q8_K, 256, 292) {
    return {word<A>(b + 4 + j), __uint_as_float(word<A>(b)), NOTHING};
}
FORMAT(Q1_0, 128, 18) {
    return {signed_by(EACH(1), ~(u32)(b[2 + (j >> 3)] >> (j & 4))), half_at<A>(b), NOTHING};
}
FORMAT(Q2_K, 256, 84) {
    u32 group = b[j >> 4], q = bits(word<A>(b + 16 + (j >> 7) * 32 + (j & 31)), (j >> 5 & 3) * 2, 3);
    return {q, half_at<A>(b + 80) * (float)(group & 15), -(half_at<A>(b + 82) * (float)(group >> 4))};
}
FORMAT(Q3_K, 256, 110) {
    u32 half = j >> 7, part = j >> 5 & 3, g = j >> 4;
    u32 low = b[96 + (g & 7)] >> 4 * (g >> 3) & 15, high = b[104 + (g & 3)] >> 2 * (g >> 2) & 3;
    u32 q = bits(word<A>(b + 32 + 32 * half + (j & 31)), 2 * part, 3);
    q |= bits(word<A>(b + (j & 31)), 4 * half + part, 1) << 2;
    return {minus(q, 4), half_at<A>(b + 108) * ((float)(low | high << 4) - 32.0f), NOTHING};
}
FORMAT(Q4_K, 256, 144) {
    float scale, minimum;
    k_group(b + 4, j >> 5, scale, minimum);
    u32 q = bits(word<A>(b + 16 + (j >> 6) * 32 + (j & 31)), (j >> 5 & 1) * 4, 15);
    return {q, half_at<A>(b) * scale, -(half_at<A>(b + 2) * minimum)};
}
FORMAT(Q5_K, 256, 176) {
    float scale, minimum;
    k_group(b + 4, j >> 5, scale, minimum);
    u32 q = bits(word<A>(b + 48 + (j >> 6) * 32 + (j & 31)), (j >> 5 & 1) * 4, 15);
    q |= bits(word<A>(b + 16 + (j & 31)), j >> 5, 1) << 4;
    return {q, half_at<A>(b) * scale, -(half_at<A>(b + 2) * minimum)};
}
FORMAT(Q6_K, 256, 210) {
    u32 half = j >> 7, part = j >> 5 & 3, l = j & 31;
    u32 q = bits(word<A>(b + half * 64 + (part & 1) * 32 + l), 4 * (part >> 1), 15);
    q |= bits(word<A>(b + 128 + half * 32 + l), 2 * part, 3) << 4;
    return {minus(q, 32), half_at<A>(b + 208) * (float)(signed char)b[192 + (j >> 4)], NOTHING};
}
FORMAT(TQ1_0, 256, 54) {
    u32 at = j < 160 ? j & 31 : j < 240 ? 32 + (j & 15) : 48;
    u32 digit = j < 160 ? j >> 5 : j < 240 ? (j - 160) >> 4 : (j - 240) >> 2;
    u32 power = digit == 0 ? 1 : digit == 1 ? 3 : digit == 2 ? 9 : digit == 3 ? 27 : 81, w = word<A>(b + at);
    // Bytes 0 and 2, 1 and 3, in halves of a word each.
    u32 even = (w & 0x00ff00ffu) * power & 0x00ff00ffu, odd = (w >> 8 & 0x00ff00ffu) * power & 0x00ff00ffu;
    u32 q = (even * 3 >> 8 & 0x00ff00ffu) | (odd * 3 & 0xff00ff00u);
    return {minus(q, 1), half_at<A>(b + 52), NOTHING};
}
FORMAT(TQ2_0, 256, 66) {
    u32 q = bits(word<A>(b + (j >> 7) * 32 + (j & 31)), (j >> 5 & 3) * 2, 3);
    return {minus(q, 1), half_at<A>(b + 64), NOTHING};
}
// Twice e2m1's numbers.
DEV u32 e2m1(u32 q) {
    return looked_up(q, 0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
}
FORMAT(MXFP4, 32, 17) {
    u32 e = b[0]; // 2^(e - 128), by its bits: it may be subnormal
    return {e2m1(nibbles<1>(b + 1, j)), __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23), NOTHING};
}
FORMAT(NVFP4, 64, 36) {
    u32 s = b[j >> 4], exponent = s >> 3 & 15;
    float d = exponent == 0 ? (float)(s & 7) * 0.0009765625f : __uint_as_float((exponent + 116) << 23) * (float)(8 + (s & 7));
    u32 q = bits(word<A>(b + 4 + (j >> 4) * 8 + (j & 7)), (j >> 3 & 1) * 4, 15);
    return {e2m1(q), s == 0x7f ? 0.0f : d, NOTHING};
}
// Denser around zero.
DEV u32 uneven(u32 q) {
    return looked_up(q, 0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
}
FORMAT(IQ4_NL, 32, 18) {
    return {uneven(nibbles<A>(b + 2, j)), half_at<A>(b), NOTHING};
}
FORMAT(IQ4_XS, 256, 136) {
    u32 g = j >> 5, low = b[4 + (g >> 1)] >> 4 * (g & 1) & 15, high = two<A>(b + 2) >> 2 * g & 3;
    return {uneven(nibbles<A>(b + 8 + 16 * g, j & 31)), half_at<A>(b) * ((float)(low | high << 4) - 32.0f), NOTHING};
}
FORMAT(IQ2_XXS, 256, 66) {
    const u8* group = b + 2 + (j >> 5) * 8;
    u32 run = j >> 3 & 3, w = word<A>(group + 4);
    u32 q = signed_by(wide(GRID_IQ2_XXS[group[run]], j), eighth(w >> 7 * run) >> (j & 4));
    return {q, half_at<A>(b) * (0.5f + (float)(w >> 28)) * 0.25f, NOTHING};
}
// Of two groups of 16 to a byte.
DEV float iq2_scale(const u8* scales, u32 j) {
    return (0.5f + (float)(scales[j >> 5] >> 4 * (j >> 4 & 1) & 15)) * 0.25f;
}
FORMAT(IQ2_XS, 256, 74) {
    u32 run = two<A>(b + 2 + (j >> 3) * 2);
    u32 q = signed_by(wide(GRID_IQ2_XS[run & 511], j), eighth(run >> 9) >> (j & 4));
    return {q, half_at<A>(b) * iq2_scale(b + 66, j), NOTHING};
}
FORMAT(IQ2_S, 256, 82) {
    u32 i = j >> 3, high = b[66 + (i >> 2)] >> 2 * (i & 3) & 3;
    u32 q = signed_by(wide(GRID_IQ2_S[b[2 + i] | high << 8], j), b[34 + i] >> (j & 4));
    return {q, half_at<A>(b) * iq2_scale(b + 74, j), NOTHING};
}
FORMAT(IQ3_XXS, 256, 98) {
    u32 w = word<A>(b + 66 + (j >> 5) * 4), c = octal(GRID_IQ3_XXS[b[2 + (j >> 2)]]);
    u32 q = EACH(4) + 8 * c + (c & c >> 1 & c >> 2 & EACH(1)) * 2; // 4, 12 and so on, but 62
    return {signed_by(q, eighth(w >> 7 * (j >> 3 & 3)) >> (j & 4)), half_at<A>(b) * (0.5f + (float)(w >> 28)) * 0.5f, NOTHING};
}
FORMAT(IQ3_S, 256, 110) {
    u32 i = j >> 2, high = b[66 + (i >> 3)] >> (i & 7) & 1, nibble = b[106 + (j >> 6)] >> 4 * (j >> 5 & 1) & 15;
    u32 q = EACH(1) + 2 * octal(GRID_IQ3_S[b[2 + i] | high << 8]);
    return {signed_by(q, b[74 + (j >> 3)] >> (j & 4)), half_at<A>(b) * (float)(1 + 2 * nibble), NOTHING};
}
FORMAT(IQ1_S, 256, 50) {
    u32 i = j >> 3, group = two<A>(b + 34 + (j >> 5) * 2);
    u32 q = shifted(GRID_IQ1_S[b[2 + i] | (group >> 3 * (i & 3) & 7) << 8], j, group >> 15);
    return {q, half_at<A>(b) * (float)(2 * (group >> 12 & 7) + 1) * 0.125f, NOTHING};
}
FORMAT(IQ1_M, 256, 56) {
    u32 d = 0, i = j >> 3;
#pragma unroll
    for (u32 n = 0; n < 4; n++) d |= two<A>(b + 48 + 2 * n) >> 12 << 4 * n;
    u32 scale = two<A>(b + 48 + 2 * (i >> 3)) >> 3 * (i >> 1 & 3) & 7, high = b[32 + (i >> 1)] >> 4 * (i & 1);
    u32 q = shifted(GRID_IQ1_S[b[i] | (high & 7) << 8], j, high & 8);
    return {q, f16_decode((u16)d) * (float)(2 * scale + 1) * 0.125f, NOTHING};
}

DEV Four floats(const Quad& quad) {
    // A signed byte, its top bit flipped, as the last byte of 2^23 + 128 + q.
    u32 q = quad.q ^ EACH(0x80);
    Four f;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        f.x[i] = (__uint_as_float(__byte_perm(q, 0x4b000000u, 0x7650 + i)) - 8388736.0f) * quad.scale + quad.offset;
    }
    return f;
}

// Four elements of blocks of any type, from `i` on, a multiple of 4.
DEV Four load_blocks(i64 type, const u8* data, i64 i) {
    switch (type) {
#define CASE(T)                                                                                                                   \
    case T: return floats(Format<T>::quad<1>(data + i / Format<T>::N * Format<T>::BYTES, (u32)(i % Format<T>::N)));
        FORMATS(CASE)
#undef CASE
        default: return {};
    }
}

// Element `i` of blocks of any type.
DEV float load_block(i64 type, const u8* data, i64 i) {
    Four f = load_blocks(type, data, i & ~(i64)3);
    u32 part = (u32)i & 3;
    return part < 2 ? part == 0 ? f.x[0] : f.x[1] : part == 2 ? f.x[2] : f.x[3];
}
