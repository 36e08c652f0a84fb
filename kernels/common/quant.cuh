// One decode function per block format: `b` is the block, `j` the element within it. Bytes are read one by one, since blocks
// have no alignment. Every product is exact in f32, so contraction into fused multiply-adds changes no bit.
#pragma once

DEV float half_at(const u8* b) {
    return f16_decode((u16)(b[0] | b[1] << 8));
}

// d: f16 | 16 bytes: element j in the low nibble of byte j, j + 16 in the high one
DEV float q4_0(const u8* b, u32 j) {
    u32 q = (b[2 + (j & 15)] >> (4 * (j >> 4))) & 15;
    return half_at(b) * ((float)q - 8.0f);
}

// d: f16 | 32 signed bytes
DEV float q8_0(const u8* b, u32 j) {
    return half_at(b) * (float)(signed char)b[2 + j];
}

// d, dmin: f16 | 8 scales and 8 minima of 6 bits in 12 bytes | 128 bytes: 64 elements per 32 bytes, low nibbles first
DEV float q4_k(const u8* b, u32 j) {
    u32 sub = j >> 5;
    const u8* s = b + 4;
    u32 scale, minimum;
    if (sub < 4) {
        scale = s[sub] & 63;
        minimum = s[sub + 4] & 63;
    } else {
        scale = (s[sub + 4] & 15) | (s[sub - 4] >> 6) << 4;
        minimum = (s[sub + 4] >> 4) | (s[sub] >> 6) << 4;
    }
    u32 q = (b[16 + (j >> 6) * 32 + (j & 31)] >> (4 * (sub & 1))) & 15;
    return half_at(b) * (float)scale * (float)q - half_at(b + 2) * (float)minimum;
}

// 128 bytes of low nibbles | 64 bytes of high pairs | 16 signed scales | d: f16; in two halves of 128 elements
DEV float q6_k(const u8* b, u32 j) {
    u32 half = j >> 7, quarter = (j >> 5) & 3, l = j & 31;
    u32 low = (b[half * 64 + (quarter & 1) * 32 + l] >> (4 * (quarter >> 1))) & 15;
    u32 high = (b[128 + half * 32 + l] >> (2 * quarter)) & 3;
    float scale = (float)(signed char)b[192 + half * 8 + (l >> 4) + quarter * 2];
    return half_at(b + 208) * scale * ((float)(low | high << 4) - 32.0f);
}
