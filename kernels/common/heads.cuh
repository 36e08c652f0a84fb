// Elements of keys and values of every type.
#pragma once
#include "types.cuh"

// Eight elements from a multiple of eight on; `whole`: the tensor begins at a multiple of 16 bytes.
DEV void load_eight(const Tensor& t, i64 i, bool whole, float (&x)[8]) {
    switch (t.type) {
        case F32: {
#pragma unroll
            for (int e = 0; e < 8; e++) x[e] = ((const float*)t.data)[i + e];
            break;
        }
        case F16: case BF16: {
            const u16* data = (const u16*)t.data + i;
            u32 pair[4];
            if (whole) {
                asm("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(pair[0]), "=r"(pair[1]), "=r"(pair[2]), "=r"(pair[3]) : "l"(data));
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++) pair[e] = data[2 * e] | (u32)data[2 * e + 1] << 16;
            }
            bool half = t.type == F16;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                x[2 * e] = half ? f16_decode((u16)pair[e]) : __uint_as_float(pair[e] << 16);
                x[2 * e + 1] = half ? f16_decode((u16)(pair[e] >> 16)) : __uint_as_float(pair[e] & 0xffff0000u);
            }
            break;
        }
        case F8E4M3: case F8E5M2: {
#pragma unroll
            for (int e = 0; e < 8; e++) x[e] = t.type == F8E4M3 ? f8e4m3_decode(t.data[i + e]) : f8e5m2_decode(t.data[i + e]);
            break;
        }
        default: {
#pragma unroll
            for (int half = 0; half < 8; half += 4) {
                Four four;
                if (t.type == Q8_0) four = load_blocks(Q8_0, t.data, i + half);
                else four = load_blocks(Q4_0, t.data, i + half);
#pragma unroll
                for (int e = 0; e < 4; e++) x[half + e] = four.x[e];
            }
        }
    }
}
