// Blocks of 32 numbers as GGUF's reference encoder makes them, byte for byte: no product may fuse with what follows it.
#pragma once

// The number of the largest magnitude, the first of equals; NaN where one is not finite.
DEV float largest_of(const float* x) {
    float most = 0.0f;
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        finite = finite && fabsf(x[i]) < INFINITE;
        if (fabsf(x[i]) > fabsf(most)) most = x[i];
    }
    return finite ? most : NOT_A_NUMBER;
}
DEV float reciprocal(float d) {
    float inverse = 1.0f / d;
    return fabsf(inverse) < INFINITE ? inverse : 0.0f;
}
DEV void put_scale(u8* b, float d) {
    u16 h = is_nan(d) ? (u16)0x7e00 : f16_encode(d);
    b[0] = (u8)h;
    b[1] = (u8)(h >> 8);
}

// Halves are rounded away from zero.
DEV void encode_q8_0(u8* b, const float* x) {
    float most = largest_of(x), d = fabsf(most) / 127.0f, inverse = is_nan(most) ? 0.0f : reciprocal(d);
    put_scale(b, d);
#pragma unroll
    for (int i = 0; i < 32; i++) {
        float v = is_nan(most) ? 0.0f : __fmul_rn(x[i], inverse);
        int whole = (int)v;
        float rest = v - (float)whole;
        b[2 + i] = (u8)(whole + (rest >= 0.5f) - (rest <= -0.5f));
    }
}
DEV void encode_q4_0(u8* b, const float* x) {
    float most = largest_of(x), d = most * -0.125f, inverse = is_nan(most) ? 0.0f : reciprocal(d);
    put_scale(b, d);
    auto nibble = [&](float v) {
        float q = is_nan(most) ? 0.0f : fmaxf(__fadd_rn(__fmul_rn(v, inverse), 8.5f), 0.0f);
        u32 n = (u32)q;
        return n < 15 ? n : 15;
    };
#pragma unroll
    for (int i = 0; i < 16; i++) b[2 + i] = (u8)(nibble(x[i]) | nibble(x[i + 16]) << 4);
}
DEV void encode_block(i64 type, u8* b, const float* x) {
    if (type == Q8_0) encode_q8_0(b, x);
    else encode_q4_0(b, x);
}
