// What every kernel shares: tensors as the host passes them (src/cuda/kernel.rs mirrors these structs), and loads and
// stores of their elements as f32. No CUDA header is needed.
#pragma once
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
#define KERNEL extern "C" __global__
#define DEV __device__ __forceinline__

enum Type { F32, F16, BF16, Q4_0, Q8_0, Q4_K, Q6_K };

// Strides in elements, innermost first. `data` is null where the operand is absent.
struct Tensor {
    u8* data;
    i64 stride[6];
    i64 type;
};

DEV float f16_decode(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
DEV u16 f16_encode(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
DEV float bf16_decode(u16 h) {
    return __uint_as_float((u32)h << 16);
}
// To nearest even; NaN stays NaN.
DEV u16 bf16_encode(float f) {
    u32 bits = __float_as_uint(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#include "quant.cuh"

DEV float load(const Tensor& t, i64 i) {
    switch (t.type) {
        case F32: return ((const float*)t.data)[i];
        case F16: return f16_decode(((const u16*)t.data)[i]);
        case BF16: return bf16_decode(((const u16*)t.data)[i]);
        case Q4_0: return q4_0(t.data + i / 32 * 18, (u32)(i % 32));
        case Q8_0: return q8_0(t.data + i / 32 * 34, (u32)(i % 32));
        case Q4_K: return q4_k(t.data + i / 256 * 144, (u32)(i % 256));
        default: return q6_k(t.data + i / 256 * 210, (u32)(i % 256));
    }
}

DEV void store(const Tensor& t, i64 i, float value) {
    switch (t.type) {
        case F32: ((float*)t.data)[i] = value; break;
        case F16: ((u16*)t.data)[i] = f16_encode(value); break;
        default: ((u16*)t.data)[i] = bf16_encode(value); break;
    }
}

// The sum over the warp's 32 lanes, in every lane, in the same order every time.
DEV float warp_sum(float v) {
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}
