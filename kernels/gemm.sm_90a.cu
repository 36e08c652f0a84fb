// The products of gemm.cu on Hopper's tensor cores (wgmma), of bf16 and f16: for compute capability 9.0 alone.
//
// A block of two warpgroups computes 128 x 256 outputs, 64 x 256 each, 128 bytes of k at a time. Four stages of tiles of 48 KB lie in
// shared memory, in rows of 128 bytes whose eight chunks of 16 are permuted by the row as wgmma's 128-byte swizzle wants it. All
// threads copy (cp.async), two steps ahead. One barrier a step: behind it, everyone's copies for the step have arrived, and everyone has
// waited for the products of two steps before, whose tiles are then filled anew while those of this step run.
// Which tile, rows of groups, gated pairs, split k and the epilogue are gemm.cu's, for 256 columns.
// Not done: TMA, a warpgroup that only copies and blocks that stay, which would hide the epilogue and the first copies (about 10 % at
// k = 4096) and free the issue slots of 12 copies a thread and step.
// Promised instructions: HGMMA, LDGSTS.
// Traffic per block and k of 64: 48 KB for 4.2 MFLOP, from L2: 87 flops a byte. Estimate on an H200: 4096 cubed in bf16 at 70 % of the
// 790 TFLOP/s that a library reaches, 550, 0.25 ms. Run in the PTX interpreter and assembled; not measured on a GPU.
#define COLUMNS 256
#include "gemm.cuh"

enum : u32 { ROWS = 128, ROW = 128, DEPTH = 4, A_BYTES = ROWS * ROW, STAGE_BYTES = A_BYTES + BN * ROW };

// Byte of 16-byte chunk `chunk` of row `row`.
DEV u32 swizzled(u32 row, u32 chunk) {
    return row * ROW + ((chunk ^ (row & 7)) << 4);
}
// A tile whose rows of 128 bytes are k, permuted: 8 rows are 1024 bytes.
DEV u64 descriptor(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | 1ull << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}
// Registers that products write were touched before, or shared memory was: products come after.
DEV void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
DEV void products_end() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// All but the last N groups of products are done.
template <int N> DEV void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// What threads wrote to shared memory is seen by wgmma.
DEV void writes_seen() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#define WGMMA(name, types)                                                                                                       \
    struct name {                                                                                                                \
        static DEV void multiply(float (&d)[128], u64 a, u64 b) {                                                                \
            asm volatile("{.reg .pred adds; setp.eq.u32 adds, 0, 0; wgmma.mma_async.sync.aligned.m64n256k16." types " {"         \
                     "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"                    \
                     "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"          \
                     "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,"          \
                     "%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"          \
                     "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,"\
                     "%120,%121,%122,%123,%124,%125,%126,%127"                                                                   \
                     "}, %128, %129, adds, 1, 1, 0, 0;}"                                                                         \
                     :                                                                                                           \
                       "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),           \
                       "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),     \
                       "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),   \
                       "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),   \
                       "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),   \
                       "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),   \
                       "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),   \
                       "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),   \
                       "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),   \
                       "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),   \
                       "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),   \
                       "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),   \
                       "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),\
                       "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),\
                       "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]),\
                       "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])\
                     : "l"(a), "l"(b));                                                                                          \
        }                                                                                                                        \
    };
WGMMA(WideBf16, "f32.bf16.bf16")
WGMMA(WideHalf, "f32.f16.f16")

template <class Type> DEV void gemm(const Args& p) {
    enum : u32 { A_CHUNKS = ROWS / 32, B_CHUNKS = BN / 32 };
    extern __shared__ __align__(1024) u8 shared[];
    u32 base = shared_address(shared);
    Tile t = tile_of<ROWS>(p, 2, ROW);
    if (t.rows.first == t.rows.end) return;

    // What each thread copies: a chunk of each 32nd row.
    u32 chunk = threadIdx.x % 8, line = threadIdx.x / 8, k_bytes = (u32)p.k * 2;
    const u8 *a[A_CHUNKS], *b[B_CHUNKS];
#pragma unroll
    for (u32 c = 0; c < A_CHUNKS; c++) {
        u64 i = t.rows.first + line + c * 32;
        a[c] = i < t.rows.end ? p.x.data + (matrix_of_rows(p, p.x, t.rows.b) + (i64)i * p.x.stride[1]) * 2 : nullptr;
    }
#pragma unroll
    for (u32 c = 0; c < B_CHUNKS; c++) b[c] = weight_row(p, t, line + c * 32, 1, 2);
    auto copy = [&](u32 step) {
        u32 to = base + step % DEPTH * STAGE_BYTES, k = step * ROW + chunk * 16;
        bool in_k = k < k_bytes;
#pragma unroll
        for (u32 c = 0; c < A_CHUNKS; c++) copy_async(to + swizzled(line + c * 32, chunk), a[c] && in_k ? a[c] + k : p.x.data, a[c] && in_k);
#pragma unroll
        for (u32 c = 0; c < B_CHUNKS; c++) {
            copy_async(to + A_BYTES + swizzled(line + c * 32, chunk), b[c] && in_k ? b[c] + k : p.w.data, b[c] && in_k);
        }
    };

    float sums[128];
#pragma unroll
    for (u32 i = 0; i < 128; i++) sums[i] = 0.0f;
#pragma unroll
    for (u32 s = 0; s < 2; s++) {
        if (t.first_step + s < t.end_step) copy(t.first_step + s);
        copies_end();
    }
    u32 group = threadIdx.x / 128;
    for (u32 step = t.first_step; step < t.end_step; step++) {
        copies_wait<1>();
        writes_seen();
        __syncthreads();
        u32 a_tile = base + step % DEPTH * STAGE_BYTES + group * 64 * ROW, b_tile = base + step % DEPTH * STAGE_BYTES + A_BYTES;
        products_begin();
#pragma unroll
        for (u32 k = 0; k < 4; k++) Type::multiply(sums, descriptor(a_tile + k * 32), descriptor(b_tile + k * 32));
        products_end();
        if (step + 2 < t.end_step) copy(step + 2);
        copies_end();
        products_wait<1>();
    }
    products_wait<0>();
    copies_wait<0>();
    __syncthreads();

    // Through shared memory to rows.
    float* out = (float*)shared;
    struct alignas(8) Pair {
        float low, high;
    };
    u32 row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (u32 j = 0; j < 32; j++) {
        u32 column = j * 8 + threadIdx.x % 4 * 2;
        *(Pair*)(out + sum_place(row, column)) = {sums[4 * j], sums[4 * j + 1]};
        *(Pair*)(out + sum_place(row + 8, column)) = {sums[4 * j + 2], sums[4 * j + 3]};
    }
    __syncthreads();
    finish_tile<ROWS>(p, t, out);
}

KERNEL void __launch_bounds__(THREADS, 1) bf16_wide(const __grid_constant__ Args p) {
    gemm<WideBf16>(p);
}
KERNEL void __launch_bounds__(THREADS, 1) f16_wide(const __grid_constant__ Args p) {
    gemm<WideHalf>(p);
}
