// The products of gemm.cu on Hopper's tensor cores (wgmma), of bf16 and f16, and of f8e4m3 under Numerics::Fast: for compute capability 9.0 alone.
//
// One block a multiprocessor stays and takes tile after tile of 128 x `width` outputs; the host chooses `width`, a multiple of 16 up to 256, so that
// the tiles fill the device (`Product::wide` in src/cuda/matmul.rs). One warp copies the weights, another x, 64 of k at a time by tensor maps (TMA, 128-byte
// swizzle), into a ring of as many stages as fit; two warpgroups multiply 64 rows each; two barriers a stage say that its copies are there, and that it was read.
// The lane that copies is elected (`elect.sync`): otherwise the assembler makes each copy a loop over lanes that might, and a step of up to 128 columns takes
// 0.4 us instead of 0.3.
// So the copies for the next tile run while this one's sums are stored, and the products of a step while those of the next are asked for.
// Sums that are the result go from registers to 16 bytes a thread, transposed among four lanes; others through 4 KB a warp, four columns a lane.
// A gated pair is 32 rows of w beside 32 of up, by turns. Where tiles are few, a cluster of 2 or 4 blocks shares k of a tile; each sends
// the others their rows of its sums, and adds what it gets: no scratch memory, no second kernel. Nothing in it releases or acquires at the cluster's scope,
// which waits for all of a thread's accesses (1 us).
// Which tile, rows of groups and what follows the sums are gemm.cu's.
// fp8 is copied as 16-bit elements, two bytes each. Tensor cores keep about 14 bits of its sums, so those of a step (128 of k) are added in registers;
// twice 128 columns, of which a part's sums are in the tensor cores while the other warpgroup adds its own, leave room for both.
// Promised instructions: HGMMA, QGMMA, UTMALDG.
// Traffic per block and k of 64, from L2: 48 KB at 128 x 256 for 4.2 MFLOP.
// Measured on an H200 in turns with cuBLAS, bf16, TFLOP/s (cuBLAS): 4096 cubed 692 (687), 8192 cubed 666 (659); with bias and silu 428 and 483.
// The models' shapes beside cuBLAS: README.md. Open: products below 15 us, where a tile's first copies and its end do not overlap the launch before, since
// no second block fits beside this one. With 80 registers a thread, 64 columns and half the stages one does: 15 to 30 % slower by 128 rows.
// f8e4m3, TFLOP/s (torch._scaled_mm, and with sums left in the tensor cores): 4096 cubed 1099 (1371, 1485), 8192 cubed 1077 (1445, 1405),
// 2048 x 14336 x 4096 1057 (1374, 1485), 128 x 14336 x 4096 531 (694, 747). nmse of 32768 positive terms 1.5e-8, of as many whose halves cancel
// 2.6e-6, as torch's; sums left in the tensor cores 1.1e-2 and 5.0e-2. A step of 64, 128, 256 columns takes 0.42, 0.58, 0.95 us.
// Lost: fp8 by parts of 96 columns (192 at 4096 cubed: 806).
// Tried and lost: two or four blocks that share rows of x by multicast (186 us at 4096 cubed for 182; 1 to 3 us more in all the models' products by 128 rows);
// at 4096 cubed, where 128 x 256 had 782 TFLOP/s (cuBLAS 790): two that share the wider operand, whose arrivals waited for memory (596), 256 x 128
// (763), stores by TMA behind three stages (767), two warpgroups with a tile of 64 x 256 each by turns (741).
#include "gemm.cuh"
#include "hopper.cuh"
#include "shares.cuh"

enum : u32 { HEIGHT = 128, WIDEST = 256, ROW = 128, STEP = 64, CONSUMERS = 256, STAGING = 4096, PART = 64 };

struct Wide {
    Args p;
    u32 tiles, width, depth, shares; // `shares`: blocks of a cluster, which share k
    TensorMap x, w, up;
};
enum : u32 { X_MAP = 768, MAP_BYTES = 128 }; // in Wide
static_assert(sizeof(Wide) == X_MAP + 3 * MAP_BYTES, "behind Args, aligned to 64");

// 64 rows of a times N of b, 16 of k; added to d if `adds`.
template <class Type, u32 N> DEV void multiply(float (&d)[WIDEST / 2], u64 a, u64 b, u32 adds);
#define PRODUCT(type, types, n, a, b, adds)                                                                                       \
    template <> DEV void multiply<type, n>(float (&d)[WIDEST / 2], u64 x, u64 w, u32 more) {                                      \
        asm volatile("{.reg .pred adds; setp.ne.u32 adds, " adds ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16." types         \
                     " {" NAMES_##n "}, " a ", " b ", adds, 1, 1, 0, 0;}"                                                         \
                     : SUMS_##n                                                                                                   \
                     : "l"(x), "l"(w), "r"(more));                                                                                \
    }
#define PRODUCTS(type, types, out, packed)                                                                                        \
    struct type {                                                                                                                 \
        enum { TYPE = out, ELEM = 2 };                                                                                                      \
        static DEV u32 pack(float low, float high) {                                                                              \
            return packed(low, high);                                                                                             \
        }                                                                                                                         \
    };                                                                                                                            \
    PRODUCT(type, types, 32, "%16", "%17", "%18") \
    PRODUCT(type, types, 48, "%24", "%25", "%26") \
    PRODUCT(type, types, 64, "%32", "%33", "%34") \
    PRODUCT(type, types, 80, "%40", "%41", "%42") \
    PRODUCT(type, types, 96, "%48", "%49", "%50") \
    PRODUCT(type, types, 112, "%56", "%57", "%58") \
    PRODUCT(type, types, 128, "%64", "%65", "%66") \
    PRODUCT(type, types, 144, "%72", "%73", "%74") \
    PRODUCT(type, types, 160, "%80", "%81", "%82") \
    PRODUCT(type, types, 176, "%88", "%89", "%90") \
    PRODUCT(type, types, 192, "%96", "%97", "%98") \
    PRODUCT(type, types, 208, "%104", "%105", "%106") \
    PRODUCT(type, types, 224, "%112", "%113", "%114") \
    PRODUCT(type, types, 240, "%120", "%121", "%122") \
    PRODUCT(type, types, 256, "%128", "%129", "%130")
PRODUCTS(Bf16s, "f32.bf16.bf16", BF16, pack_bf16)
PRODUCTS(Halves, "f32.f16.f16", F16, pack_f16)

// f8e4m3: 64 rows of x times N of w, 32 of k.
struct WideFp8 {
    enum { TYPE = BF16, ELEM = 1 };
    static DEV u32 pack(float low, float high) {
        return pack_bf16(low, high);
    }
};
template <u32 N> DEV void multiply_fp8(float (&d)[N / 2], u64 a, u64 b, u32 adds);
#define PRODUCT_FP8(n, a, b, adds)                                                                                                \
    template <> DEV void multiply_fp8<n>(float (&d)[n / 2], u64 x, u64 w, u32 more) {                                             \
        asm volatile("{.reg .pred adds; setp.ne.u32 adds, " adds ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3"  \
                     " {" NAMES_##n "}, " a ", " b ", adds, 1, 1;}"                                                               \
                     : SUMS_##n                                                                                                   \
                     : "l"(x), "l"(w), "r"(more));                                                                                \
    }
PRODUCT_FP8(32, "%16", "%17", "%18")
PRODUCT_FP8(64, "%32", "%33", "%34")
PRODUCT_FP8(128, "%64", "%65", "%66")

// The ring of stages, and where in it.
struct Ring {
    u32 base, bytes, depth, full, empty; // `bytes` of a stage; the barriers of each stage: its copies are there, nobody reads it
    u32 stage, parity;

    DEV void next() {
        if (++stage == depth) stage = 0, parity ^= 1;
    }
    // The warpgroup has read a stage.
    DEV void release(u32 read) const {
        if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * read);
    }
};

// Products of N columns by the warpgroup's 64 rows, over some steps.
template <class Type, u32 N> DEV void multiply_steps(float (&d)[WIDEST / 2], Ring& ring, u32 steps) {
    u32 before = 0, rows = threadIdx.x / 128 * (64 * ROW);
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        barrier_wait(ring.full + 8 * ring.stage, ring.parity);
        u32 x = ring.base + ring.stage * ring.bytes + rows, w = ring.base + ring.stage * ring.bytes + HEIGHT * ROW;
        products_begin();
#pragma unroll
        for (u32 k = 0; k < 4; k++) multiply<Type, N>(d, descriptor(x + k * 32), descriptor(w + k * 32), k + step);
        products_end();
        products_wait<1>();
        if (step > 0) ring.release(before);
        before = ring.stage;
        ring.next();
    }
    products_wait<0>();
    if (steps > 0) ring.release(before);
}
// The same of fp8, whose sums have about 14 bits in the tensor cores: those of a step, of N columns at a time, are added here, times the scale of
// w's block of 128 by 128 where there is one.
template <u32 N, u32 PARTS> DEV void multiply_steps_fp8(const Args& p, const Tile& t, float (&d)[WIDEST / 2], Ring& ring) {
    u32 rows = threadIdx.x / 128 * (64 * ROW);
#pragma unroll
    for (u32 e = 0; e < PARTS * N / 2; e++) d[e] = 0.0f;
#pragma unroll 1
    for (u32 step = t.first_step; step < t.end_step; step++) {
        barrier_wait(ring.full + 8 * ring.stage, ring.parity);
        u32 x = ring.base + ring.stage * ring.bytes + rows, w = ring.base + ring.stage * ring.bytes + HEIGHT * ROW;
#pragma unroll
        for (u32 c = 0; c < PARTS; c++) {
            float part[N / 2], scale = 1.0f;
            if (p.w_scales == OF_BLOCKS && t.first_j + c * N < p.n) scale = block_scale(p, t.first_j + c * N, step * ROW);
            products_begin();
#pragma unroll
            for (u32 k = 0; k < 4; k++) multiply_fp8<N>(part, descriptor(x + k * 32), descriptor(w + c * N * ROW + k * 32), k);
            products_end();
            products_wait<0>();
            if (c == PARTS - 1) ring.release(ring.stage);
#pragma unroll
            for (u32 e = 0; e < N / 2; e++) {
                asm volatile("" : "+f"(part[e])); // not read before the wait
                d[c * (N / 2) + e] += scale * part[e];
            }
        }
        ring.next();
    }
}
template <class Type> DEV void multiply_tile(const Args& p, const Tile& t, float (&d)[WIDEST / 2], Ring& ring, u32 width) {
    if constexpr (Type::ELEM == 1) {
        switch (width) {
            case 32: return multiply_steps_fp8<32, 1>(p, t, d, ring);
            case 64: return multiply_steps_fp8<64, 1>(p, t, d, ring);
            case 128: return multiply_steps_fp8<128, 1>(p, t, d, ring);
            default: return multiply_steps_fp8<128, 2>(p, t, d, ring);
        }
    } else {
        u32 steps = t.end_step - t.first_step;
        switch (width) {
#define CASE(n)                                                                                                                   \
    case n: multiply_steps<Type, n>(d, ring, steps); break;
            CASE(32) CASE(48) CASE(64) CASE(80)
            CASE(96) CASE(112) CASE(128) CASE(144)
            CASE(160) CASE(176) CASE(192) CASE(208)
            CASE(224) CASE(240) CASE(256)
#undef CASE
        }
    }
}

// Where the tensor maps find matrix `b` of a batch.
struct Matrix {
    u32 inner, outer;
};
DEV Matrix matrix_at(const Args& p, const Tensor& t, u64 b) {
    return {t.stride[2] ? (u32)(b % p.extent[0]) : 0, t.stride[3] ? (u32)(b / p.extent[0]) : 0};
}

// Lane q of four gives its word of each of four blocks, and gets four words of block q.
DEV void transpose(u32 (&v)[4]) {
    bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    u32 x = __shfl_xor_sync(0xffffffffu, odd ? v[0] : v[1], 1), y = __shfl_xor_sync(0xffffffffu, odd ? v[2] : v[3], 1);
    if (odd) {
        v[0] = x, v[2] = y;
    } else {
        v[1] = x, v[3] = y;
    }
    x = __shfl_xor_sync(0xffffffffu, upper ? v[0] : v[2], 2), y = __shfl_xor_sync(0xffffffffu, upper ? v[1] : v[3], 2);
    if (upper) {
        v[0] = x, v[1] = y;
    } else {
        v[2] = x, v[3] = y;
    }
}

// The warp's sums of 16 rows as they are, to the operands' type.
template <class Type> DEV void store_rows(const Args& p, const Tile& t, u64 first, const float (&d)[WIDEST / 2]) {
    u32 lane = threadIdx.x % 32;
    i64 out = matrix_of_rows(p, p.out, t.rows.b);
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        u64 i = first + lane / 4 + h * 8;
        u16* row = (u16*)p.out.data + out + i * p.out.stride[1] + t.first_j;
#pragma unroll
        for (u32 block = 0; block < WIDEST / 8; block += 4) {
            if (block * 8 >= t.columns) break;
            u32 v[4];
#pragma unroll
            for (u32 u = 0; u < 4; u++) v[u] = Type::pack(d[(block + u) * 4 + h * 2], d[(block + u) * 4 + h * 2 + 1]);
            transpose(v);
            u32 column = (block + lane % 4) * 8;
            if (i < t.rows.end && column < t.columns && t.first_j + column < p.n) *(U4*)(row + column) = {v[0], v[1], v[2], v[3]};
        }
    }
}

// The columns of a gated pair's tile: 32 of w, 32 of up, and so on.
DEV u32 column_of(const Tile& t, u32 j) {
    return t.gated ? j / 32 * PART + j % 32 : j;
}

// The warp's sums of 16 rows to out with what follows, by parts of 64 columns of the tile through 4 KB of shared memory.
DEV void finish_rows(const Args& p, const Tile& t, u64 first, const float (&d)[WIDEST / 2], float* sums) {
    u32 lane = threadIdx.x % 32, quarters = t.gated ? 8 : 16;
    Place to = place_of(p, t.rows.b);
    auto at = [](u32 row, u32 column) { return row * PART + (column ^ (row & 7) << 3); };
#pragma unroll
    for (u32 part = 0; part < WIDEST / PART; part++) {
        if (part * quarters * 4 >= t.columns) break;
        __syncwarp();
#pragma unroll
        for (u32 e = 0; e < PART / 4; e++) {
            u32 row = lane / 4 + e % 2 * 8, column = e / 2 * 8 + lane % 4 * 2, from = part * (PART / 2) + e * 2;
            *(Pair*)(sums + at(row, column)) = {d[from], d[from + 1]};
        }
        __syncwarp();
#pragma unroll 1
        for (u32 e = lane; e < 16 * quarters; e += 32) {
            u32 row = e / quarters, column = e % quarters * 4, inside = part * quarters * 4 + column;
            u64 i = first + row, j = t.first_j + inside;
            if (i >= t.rows.end || inside >= t.columns || j >= p.n) continue;
            const float *gate = sums + at(row, column), *other = sums + at(row, column + (t.gated ? 32 : 0));
            float y[4], up[4];
#pragma unroll
            for (u32 u = 0; u < 4; u++) y[u] = gate[u], up[u] = other[u];
            finish_four(p, to, i, j, y, up);
        }
    }
}

DEV void share_rows(u32 width, const float (&d)[WIDEST / 2], float* sums) {
    u32 row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (u32 e = 0; e < WIDEST / 4; e++) {
        if (e * 4 >= width) break;
        *(Pair*)(sums + shared_sum(row + e % 2 * 8, e / 2 * 8 + threadIdx.x % 4 * 2, width)) = {d[2 * e], d[2 * e + 1]};
    }
}
// This block's rows of the tile's outputs, with what follows.
DEV void finish_share(const Args& p, const Tile& t, const float* sums, u32 width, u32 rank, u32 shares) {
    u32 quarters = t.columns / 4, rows = HEIGHT / shares;
    Place to = place_of(p, t.rows.b);
#pragma unroll 1
    for (u32 e = threadIdx.x; e < rows * quarters; e += CONSUMERS) {
        u32 row = e / quarters, column = e % quarters * 4;
        u64 i = t.rows.first + rank * rows + row, j = t.first_j + column;
        if (i >= t.rows.end || j >= p.n) continue;
        float y[4] = {}, up[4] = {};
        add_shares(y, sums, HEIGHT, row, column_of(t, column), width, rank, shares);
        if (t.gated) add_shares(up, sums, HEIGHT, row, column_of(t, column) + 32, width, rank, shares);
        finish_four(p, to, i, j, y, up);
    }
}

// Tile `at`: eight down, then right.
DEV Tile wide_tile(const Wide& a, u32 at, u32 rank, u32 elem) {
    const Args& p = a.p;
    Tile t;
    t.gated = p.up.data != nullptr;
    t.columns = t.gated ? a.width / 2 : a.width;
    u32 tiles_n = ((u32)p.n + t.columns - 1) / t.columns, tiles_m = a.tiles / tiles_n;
    u32 band = at / (8 * tiles_n) * 8, height = tiles_m - band < 8 ? tiles_m - band : 8, inside = at % (8 * tiles_n);
    u32 tile = band + inside % height;
    if (p.groups) {
        t.rows = rows_of(p, tile, HEIGHT);
    } else {
        u32 tiles = ((u32)p.m + HEIGHT - 1) / HEIGHT, row = tile % tiles * HEIGHT, end = (u32)p.m;
        t.rows = {tile / tiles, row, row + HEIGHT < end ? row + HEIGHT : end};
    }
    t.first_j = (u64)(inside / height) * t.columns;
    u32 steps = t.rows.b < 0 ? 0 : ((u32)p.k * elem + ROW - 1) / ROW;
    t.split = rank;
    t.first_step = steps * rank / a.shares, t.end_step = steps * (rank + 1) / a.shares;
    return t;
}

// The weights of a step, to the ring's stage `stage`. One lane, as what follows.
DEV void copy_weights(const Wide& a, u64 maps, const Tile& t, Matrix w, const Ring& ring, u32 stage, u32 k) {
    u64 w_map = maps + X_MAP + MAP_BYTES, up_map = w_map + MAP_BYTES;
    u32 to = ring.base + stage * ring.bytes + HEIGHT * ROW, full = ring.full + 8 * stage;
    barrier_expect(full, a.width * ROW);
    if (!t.gated) {
        copy_box(to, w_map, k, (u32)t.first_j, w.inner, w.outer, full);
        return;
    }
#pragma unroll 1
    for (u32 j = 0; j < t.columns; j += 32) {
        copy_box(to + 2 * j * ROW, w_map, k, (u32)t.first_j + j, w.inner, w.outer, full);
        copy_box(to + (2 * j + 32) * ROW, up_map, k, (u32)t.first_j + j, a.p.groups ? w.inner : 0, 0, full);
    }
}
// Fills the ring with the weights of tile after tile: as many as there is room for, while the launches before still run.
DEV void copy_weights(const Wide& a, u64 maps, Ring ring, u32 rank, u32 elem, u32 first, u32 stride) {
    const Args& p = a.p;
    bool lead = elected();
    u32 room = p.groups ? 0 : ring.depth;
    if (p.groups) AFTER_LAUNCHES();
#pragma unroll 1
    for (u32 at = first; at < a.tiles; at += stride) {
        Tile t = wide_tile(a, at, rank, elem);
        if (t.rows.first == t.rows.end) continue;
        Matrix w = p.groups ? Matrix{p.w.stride[2] ? (u32)t.rows.b : 0, 0} : matrix_at(p, p.w, t.rows.b);
        if (lead) {
#pragma unroll 1
            for (u32 step = t.first_step; step < t.end_step; step++) {
                if (room > 0 && --room == 0) AFTER_LAUNCHES();
                barrier_wait(ring.empty + 8 * ring.stage, ring.parity ^ 1);
                copy_weights(a, maps, t, w, ring, ring.stage, step * STEP);
                ring.next();
            }
        }
        __syncwarp();
    }
    if (room > 0) AFTER_LAUNCHES();
}
// The same of the rows of x.
DEV void copy_rows(const Wide& a, u64 maps, Ring ring, u32 rank, u32 elem, u32 first, u32 stride) {
    const Args& p = a.p;
    bool lead = elected();
    AFTER_LAUNCHES();
#pragma unroll 1
    for (u32 at = first; at < a.tiles; at += stride) {
        Tile t = wide_tile(a, at, rank, elem);
        if (t.rows.first == t.rows.end) continue;
        Matrix x = p.groups ? Matrix{} : matrix_at(p, p.x, t.rows.b);
        if (lead) {
#pragma unroll 1
            for (u32 step = t.first_step; step < t.end_step; step++) {
                u32 full = ring.full + 8 * ring.stage;
                barrier_wait(ring.empty + 8 * ring.stage, ring.parity ^ 1);
                barrier_expect(full, HEIGHT * ROW);
                copy_box(ring.base + ring.stage * ring.bytes, maps + X_MAP, step * STEP, (u32)t.rows.first, x.inner, x.outer, full);
                ring.next();
            }
        }
        __syncwarp();
    }
}

template <class Type> DEV void gemm(const Wide& a, u64 parameters) {
    const Args& p = a.p;
    extern __shared__ __align__(1024) u8 shared[];
    u32 base = shared_address(shared), bytes = (HEIGHT + a.width) * ROW, warp = threadIdx.x / 32;
    u32 rank = a.shares > 1 ? cluster_rank() : 0, full = base + a.depth * bytes, empty = full + 8 * a.depth, met = empty + 8 * a.depth;
    Ring ring = {base, bytes, a.depth, full, empty, 0, 0};
    float* staging = (float*)(shared + a.depth * (bytes + 16) + 16) + warp * (STAGING / 4);
    if (threadIdx.x == CONSUMERS) {
        for (u32 s = 0; s < a.depth; s++) barrier_init(full + 8 * s, 2), barrier_init(empty + 8 * s, 2);
        barrier_init(met, 1);
        barriers_made();
    }
    __syncthreads();
    if (warp >= CONSUMERS / 32) {
        registers_down<56>();
        u32 first = block_index() / a.shares, stride = gridDim.x / a.shares;
        if (warp == CONSUMERS / 32) {
            copy_weights(a, parameters, ring, rank, Type::ELEM, first, stride);
        } else if (warp == CONSUMERS / 32 + 1) {
            copy_rows(a, parameters, ring, rank, Type::ELEM, first, stride);
        } else {
            AFTER_LAUNCHES();
        }
        if (a.shares > 1) cluster_meet(), cluster_meet();
        return;
    }
    registers_up<224>();
    u32 first = block_index() / a.shares, stride = gridDim.x / a.shares;
    AFTER_LAUNCHES();
    float d[WIDEST / 2] = {};
#pragma unroll 1
    for (u32 at = first; at < a.tiles; at += stride) {
        Tile t = wide_tile(a, at, rank, Type::ELEM);
        if (t.rows.first == t.rows.end) continue;
        multiply_tile<Type>(p, t, d, ring, a.width);
        u64 row = t.rows.first + warp * 16;
        if (a.shares > 1) { // all have one tile
            named_sync(1, CONSUMERS); // whose stages are read
            share_rows(a.width, d, (float*)shared);
            shared_written();
            named_sync(1, CONSUMERS);
            cluster_meet(); // so are the others'
            exchange((const float*)shared, HEIGHT / a.shares * a.width * 4, rank, a.shares, met);
            finish_share(p, t, (const float*)shared, a.width, rank, a.shares);
            cluster_meet(); // none leaves while its sums are on their way
        } else if (p.direct && p.out.type == Type::TYPE && t.rows.b >= 0) {
            store_rows<Type>(p, t, row, d);
        } else {
            finish_rows(p, t, row, d, staging);
        }
    }
}

KERNEL void __launch_bounds__(CONSUMERS + 128, 1) bf16_wide(const __grid_constant__ Wide a) {
    u64 parameters;
    PARAMETERS(bf16_wide, parameters);
    gemm<Bf16s>(a, parameters);
}
KERNEL void __launch_bounds__(CONSUMERS + 128, 1) f16_wide(const __grid_constant__ Wide a) {
    u64 parameters;
    PARAMETERS(f16_wide, parameters);
    gemm<Halves>(a, parameters);
}
KERNEL void __launch_bounds__(CONSUMERS + 128, 1) fp8_wide(const __grid_constant__ Wide a) {
    u64 parameters;
    PARAMETERS(fp8_wide, parameters);
    gemm<WideFp8>(a, parameters);
}
