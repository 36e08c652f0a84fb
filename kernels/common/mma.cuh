// Instructions of tensor cores since Ampere, and what feeds them: asynchronous copies and matrices from shared memory.
#pragma once

DEV u32 shared_address(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}
// 16 bytes, or zeros where `inside` is false; the address is valid in any case.
DEV void copy_async(u32 to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
DEV void copies_end() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// All but the last N groups of copies have arrived.
template <int N> DEV void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
// Four matrices of 8 rows of 16 bytes: lane l gives row l % 8 of matrix l / 8, and gets 4 bytes of row l / 4 of each.
DEV void load_matrices(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// 16 rows by 32 bytes of k times 8 columns: the same fragments, whatever the bytes hold. SHORT: sums have about 14 bits.
#define MMA(name, elem, short, sum, constraint, shape, types)                                                                     \
    struct name {                                                                                                                 \
        enum { ELEM = elem, SHORT = short };                                                                                                     \
        typedef sum Sum;                                                                                                          \
        static DEV void mma(Sum(&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {                                                      \
            asm volatile("mma.sync.aligned." shape ".row.col." types " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"     \
                         : constraint(d[0]), constraint(d[1]), constraint(d[2]), constraint(d[3])                                 \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                         \
        }                                                                                                                         \
    };
MMA(Bf16, 2, 0, float, "+f", "m16n8k16", "f32.bf16.bf16.f32")
MMA(Half, 2, 0, float, "+f", "m16n8k16", "f32.f16.f16.f32")
MMA(Tf32, 4, 0, float, "+f", "m16n8k8", "f32.tf32.tf32.f32") // reads the upper 19 bits
MMA(Signed, 1, 0, int, "+r", "m16n8k32", "s32.s8.s8.s32")
MMA(Unsigned, 1, 0, int, "+r", "m16n8k32", "s32.u8.s8.s32")
MMA(Fp8s, 1, 1, float, "+f", "m16n8k32", "f32.e4m3.e4m3.f32") // since sm_89

// Two floats, rounded to nearest even, the first lowest.
DEV u32 pack_bf16(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
DEV u32 pack_f16(float low, float high) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// Over the four lanes that share a row of a product.
DEV float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
DEV float quad_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
