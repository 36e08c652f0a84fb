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
#define INFINITE __uint_as_float(0x7f800000u)
#define NOT_A_NUMBER __uint_as_float(0x7fc00000u)
// What was launched before is done; what comes after may begin to be. Before it a kernel reads weights at most, and writes nothing. A comment, which
// src/cuda/module.rs makes an instruction where the GPU has it; tools/ptx puts it first in the kernels that do not place it themselves.
#define AFTER_LAUNCHES() asm volatile("//~ griddepcontrol.wait; griddepcontrol.launch_dependents;" ::: "memory")

// In the order of src/dtype.rs.
enum Type {
    F32, F16, BF16, F8E4M3, F8E5M2, I8, U8, I32,
    Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K,
    IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0
};

// Strides in elements, innermost first. `data` is null where the operand is absent.
struct Tensor {
    u8* data;
    i64 stride[6];
    i64 type;
};

DEV bool is_nan(float x) {
    return (__float_as_uint(x) & 0x7fffffffu) > 0x7f800000u;
}
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
// The fields of an f16, whose bias is 8 more.
DEV float f8e4m3_decode(u8 c) {
    if ((c & 0x7f) == 0x7f) return NOT_A_NUMBER;
    return 256.0f * f16_decode((u16)((c & 0x7f) << 7 | (c & 0x80) << 8));
}
// The upper byte of an f16.
DEV float f8e5m2_decode(u8 c) {
    return f16_decode((u16)(c << 8));
}
// To nearest even, saturating. `lowest`: bits of the least normal number; `largest`: those from which it saturates; `units`: one
// over the step of subnormal numbers; `mantissa`: bits.
DEV u8 f8_encode(float f, u32 lowest, u32 largest, u8 most, float units, u32 mantissa) {
    u32 bits = __float_as_uint(f), a = bits & 0x7fffffffu, shift = 23 - mantissa;
    u8 sign = (u8)((bits >> 24) & 0x80);
    if (a > 0x7f800000u) return 0x7f;
    if (a >= largest) return sign | most;
    if (a < lowest) return sign | (u8)rintf(fabsf(f) * units);
    u32 r = a - (lowest - (1u << 23)); // the exponent of the least normal number becomes 1
    return sign | (u8)((r + (1u << (shift - 1)) - 1 + ((r >> shift) & 1)) >> shift);
}
DEV u8 f8e4m3_encode(float f) {
    return f8_encode(f, 0x3c800000u, 0x43e00000u, 0x7e, 512.0f, 3);
}
DEV u8 f8e5m2_encode(float f) {
    return f8_encode(f, 0x38800000u, 0x47600000u, 0x7b, 65536.0f, 2);
}

#include "quant.cuh"

// Of an operand that is f32, f16 or bf16.
DEV float load_float(const Tensor& t, i64 i) {
    switch (t.type) {
        case F32: return ((const float*)t.data)[i];
        case F16: return f16_decode(((const u16*)t.data)[i]);
        default: return bf16_decode(((const u16*)t.data)[i]);
    }
}

// Of an operand of any type but blocks.
DEV float load_plain(const Tensor& t, i64 i) {
    switch (t.type) {
        case F8E4M3: return f8e4m3_decode(t.data[i]);
        case F8E5M2: return f8e5m2_decode(t.data[i]);
        case I8: return (float)((const signed char*)t.data)[i];
        case U8: return (float)t.data[i];
        case I32: return (float)((const int*)t.data)[i];
        default: return load_float(t, i);
    }
}

// Of an operand of any type.
DEV float load(const Tensor& t, i64 i) {
    return t.type < Q4_0 ? load_plain(t, i) : load_block(t.type, t.data, i);
}

DEV int load_index(const Tensor& t, i64 i) {
    return ((const int*)t.data)[i];
}

// To an operand that is f32, f16 or bf16.
DEV void store(const Tensor& t, i64 i, float value) {
    switch (t.type) {
        case F32: ((float*)t.data)[i] = value; break;
        case F16: ((u16*)t.data)[i] = f16_encode(value); break;
        default: ((u16*)t.data)[i] = bf16_encode(value); break;
    }
}

// To an operand of any plain type: integers to nearest even and saturating, 0 for NaN.
DEV void store_plain(const Tensor& t, i64 i, float value) {
    int whole = __float2int_rn(value);
    switch (t.type) {
        case F8E4M3: t.data[i] = f8e4m3_encode(value); break;
        case F8E5M2: t.data[i] = f8e5m2_encode(value); break;
        case I8: t.data[i] = (u8)(whole < -128 ? -128 : whole > 127 ? 127 : whole); break;
        case U8: t.data[i] = (u8)(whole < 0 ? 0 : whole > 255 ? 255 : whole); break;
        case I32: ((int*)t.data)[i] = whole; break;
        default: store(t, i, value); break;
    }
}

// The sum over the warp's 32 lanes, in every lane, in the same order every time.
DEV float warp_sum(float v) {
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}
