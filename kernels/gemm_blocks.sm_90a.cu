// Many rows of x by weights in blocks (Numerics::Fast) on Hopper's tensor cores, decoded on the way from shared memory to registers: no copy of a weight is
// made. For compute capability 9.0 alone, where k is a multiple of 256 and rows of both begin at multiples of 16 bytes.
//
// The product is turned round: 128 rows of w (of a gated pair 64 and 64 of up) are the left operand, which wgmma takes from registers, and up to 128 rows of
// x the right one, in shared memory; so each block decodes a weight once, and what it reads of w is what is stored. A launch before rounds x to bf16 and
// changes the order of k within 32 so that the eight neighbours which a thread decodes at once are what it owns of a fragment: of the 16-bit pairs of 32
// k, seen as a 4 x 4 matrix, the transposed one. A warp copies x by tensor maps, 64 of k at a time (128-byte swizzle), another w, 256 of k at a time as they
// are stored; two warpgroups decode and multiply, the next 64 of k while the products of these run. Few tiles share k as gemm.sm_90a.cu's do.
// Promised instructions: HGMMA, UTMALDG.
// Floor: the larger of w's bytes over the bandwidth and 2 m n k over the rate. Estimate on an H200: 128 rows by 25600 x 4096 in q4_k 45 us, where unpacking and
// multiplying took 152 (27e9 flops are 34 us, the bytes 14). Run in the PTX interpreter and assembled; not measured on a GPU.
#include "gemm.cuh"
#include "eight.cuh"
#include "shares.cuh"

enum : u32 { LINES = 128, ROW = 128, STEP = 64, CHUNK = 256, CONSUMERS = 256 }; // LINES: of weights in a tile

struct Blocks {
    Args p;
    u32 tiles, shares, rows_depth, lines_depth; // `shares`: blocks of a cluster, which share k; stages of the rings of x and of w
    u32 bytes, unused;                          // of a line's chunk
    TensorMap x, w, up;
};
enum : u32 { X_MAP = 768, MAP_BYTES = 128 }; // in Blocks
static_assert(sizeof(Blocks) == X_MAP + 3 * MAP_BYTES, "behind Args, aligned to 64");

// x as the products take it: bf16, the pairs of each 32 of k transposed. A thread has 32.
KERNEL void __launch_bounds__(256, 1) prepare(const __grid_constant__ Args p) {
    AFTER_LAUNCHES();
    u32 groups = (u32)p.k / 32;
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x, row = i / groups, k = i % groups * 32;
    if (row >= p.m) return;
    const u8* from = p.x.data + row * p.x.stride[1] * float_bytes(p.x.type);
    U4 v[4];
#pragma unroll
    for (u32 q = 0; q < 4; q++) v[q] = packed(float_eight(p.x.type, from, (u32)k + q * 8));
    U4* to = (U4*)(p.scratch + (row * p.k + k) * 2);
    to[0] = {v[0].x, v[1].x, v[2].x, v[3].x};
    to[1] = {v[0].y, v[1].y, v[2].y, v[3].y};
    to[2] = {v[0].z, v[1].z, v[2].z, v[3].z};
    to[3] = {v[0].w, v[1].w, v[2].w, v[3].w};
}

// 64 lines of a, in registers, times N rows of b, 16 of k; added to d if `adds`.
template <u32 N> DEV void multiply(float* d, const u32 (&a)[4], u64 b, u32 adds);
#define PRODUCT(n, a0, a1, a2, a3, b, adds)                                                                                       \
    template <> DEV void multiply<n>(float* d, const u32 (&a)[4], u64 x, u32 more) {                                              \
        asm volatile("{.reg .pred adds; setp.ne.u32 adds, " adds ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16"  \
                     " {" NAMES_##n "}, {" a0 "," a1 "," a2 "," a3 "}, " b ", adds, 1, 1, 0;}"                                    \
                     : SUMS_##n                                                                                                   \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(x), "r"(more));                                            \
    }
PRODUCT(64, "%32", "%33", "%34", "%35", "%36", "%37")
PRODUCT(128, "%64", "%65", "%66", "%67", "%68", "%69")

// A ring's stages, and its barriers: copies are there, nobody reads.
struct Ring {
    u32 base, bytes, depth, full, empty, stage, parity;

    DEV void next() {
        if (++stage == depth) stage = 0, parity ^= 1;
    }
    DEV u32 at() const {
        return base + stage * bytes;
    }
    DEV void filled() const {
        barrier_wait(full + 8 * stage, parity);
    }
    DEV void emptied() const {
        barrier_wait(empty + 8 * stage, parity ^ 1);
    }
};

// The tile: rows of x first, so that neighbours in time read the same weights.
struct Position {
    u32 i, j, columns, first, end; // columns: of the outputs; chunks of k
};
DEV Position tile_at(const Blocks& a, u32 height, u32 rank) {
    u32 at = blockIdx.x / a.shares, down = ((u32)a.p.m + height - 1) / height, chunks = (u32)a.p.k / CHUNK;
    u32 columns = a.p.up.data ? LINES / 2 : LINES;
    return {at % down * height, at / down * columns, columns, chunks * rank / a.shares, chunks * (rank + 1) / a.shares};
}

DEV void copy_lines(const Blocks& a, u64 maps, const Position& t, Ring ring) {
    if (!elected()) return;
    u64 w = maps + X_MAP + MAP_BYTES, second = a.p.up.data ? w + MAP_BYTES : w;
    u32 j = a.p.up.data ? t.j : t.j + LINES / 2;
#pragma unroll 1
    for (u32 c = t.first; c < t.end; c++) {
        ring.emptied();
        u32 full = ring.full + 8 * ring.stage, element = c * (a.bytes / 2);
        barrier_expect(full, ring.bytes);
        copy_box(ring.at(), w, element, t.j, 0, 0, full);
        copy_box(ring.at() + ring.bytes / 2, second, element, j, 0, 0, full);
        ring.next();
    }
}
DEV void copy_rows(u64 maps, const Position& t, Ring ring) {
    if (!elected()) return;
#pragma unroll 1
    for (u32 step = t.first * (CHUNK / STEP); step < t.end * (CHUNK / STEP); step++) {
        ring.emptied();
        u32 full = ring.full + 8 * ring.stage;
        barrier_expect(full, ring.bytes);
        copy_box(ring.at(), maps + X_MAP, step * STEP, t.i, 0, 0, full);
        ring.next();
    }
}

// The sums of the warpgroup's 64 lines and N rows.
template <class Weight, u32 N> DEV void multiply_chunks(const Blocks& a, const Position& t, float (&d)[N / 2], Ring rows, Ring lines, const u8* memory) {
    u32 lane = threadIdx.x % 32, line = threadIdx.x / 32 * 16 + lane / 4, eight = lane % 4 * 8, before = 0;
    u32 fragments[2][STEP / 16][4];
    bool first_thread = threadIdx.x % 128 == 0;
#pragma unroll 1
    for (u32 c = t.first; c < t.end; c++) {
        lines.filled();
        const u8* own = memory + (lines.at() - rows.base) + line * a.bytes;
#pragma unroll
        for (u32 s = 0; s < CHUNK / STEP; s++) {
            u32(&f)[STEP / 16][4] = fragments[s % 2];
#pragma unroll
            for (u32 g = 0; g < STEP / 32; g++) {
                u32 k = s * STEP + g * 32 + eight;
                U4 u = Weight::halves(a.p.w.type, own, k), v = Weight::halves(a.p.w.type, own + 8 * a.bytes, k);
                f[2 * g][0] = u.x, f[2 * g][1] = v.x, f[2 * g][2] = u.y, f[2 * g][3] = v.y;
                f[2 * g + 1][0] = u.z, f[2 * g + 1][1] = v.z, f[2 * g + 1][2] = u.w, f[2 * g + 1][3] = v.w;
            }
            if (s == CHUNK / STEP - 1) {
                __syncwarp();
                if (lane == 0) barrier_arrive(lines.empty + 8 * lines.stage);
            }
            rows.filled();
            products_begin();
#pragma unroll
            for (u32 i = 0; i < STEP / 16; i++) multiply<N>(d, f[i], descriptor(rows.at() + i * 32), c - t.first + s + i);
            products_end();
            products_wait<1>();
            if (first_thread && c - t.first + s > 0) barrier_arrive(rows.empty + 8 * before);
            before = rows.stage;
            rows.next();
        }
        lines.next();
    }
    products_wait<0>();
}

template <class Weight, u32 N> DEV void blocks(const Blocks& a, u64 parameters) {
    const Args& p = a.p;
    extern __shared__ __align__(1024) u8 shared[];
    u32 base = shared_address(shared), warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = a.shares > 1 ? cluster_rank() : 0;
    u32 lines_at = base + a.rows_depth * N * ROW, barriers = lines_at + a.lines_depth * LINES * a.bytes, more = barriers + 16 * a.rows_depth;
    u32 met = more + 16 * a.lines_depth;
    Ring rows = {base, N * ROW, a.rows_depth, barriers, barriers + 8 * a.rows_depth, 0, 0};
    Ring lines = {lines_at, LINES * a.bytes, a.lines_depth, more, more + 8 * a.lines_depth, 0, 0};
    if (threadIdx.x == CONSUMERS) {
        for (u32 s = 0; s < a.rows_depth; s++) barrier_init(rows.full + 8 * s, 1), barrier_init(rows.empty + 8 * s, 2);
        for (u32 s = 0; s < a.lines_depth; s++) barrier_init(lines.full + 8 * s, 1), barrier_init(lines.empty + 8 * s, 8);
        barrier_init(met, 1);
        barriers_made();
    }
    __syncthreads();
    Position t = tile_at(a, N, rank);
    if (warp >= CONSUMERS / 32) {
        registers_down<56>();
        if (warp == CONSUMERS / 32) copy_lines(a, parameters, t, lines); // while the launches before still run
        __syncwarp();
        AFTER_LAUNCHES();
        if (warp == CONSUMERS / 32 + 1) copy_rows(parameters, t, rows);
        __syncwarp();
        if (a.shares > 1) cluster_meet(), cluster_meet();
        return;
    }
    registers_up<224>();
    AFTER_LAUNCHES();
    float d[N / 2] = {};
    multiply_chunks<Weight, N>(a, t, d, rows, lines, shared);

    // Sums [row of x][line], in place of the rings.
    float* sums = (float*)shared;
    named_sync(1, CONSUMERS);
#pragma unroll
    for (u32 e = 0; e < N / 2; e++) {
        u32 row = e / 4 * 8 + lane % 4 * 2 + e % 2, line = warp * 16 + lane / 4 + e / 2 % 2 * 8;
        sums[shared_sum(row, line, LINES)] = d[e];
    }
    if (a.shares > 1) {
        shared_written();
        named_sync(1, CONSUMERS);
        cluster_meet(); // the others' stages are read
        exchange(sums, N / a.shares * LINES * 4, rank, a.shares, met);
    } else {
        named_sync(1, CONSUMERS);
    }
    Place to = place_of(p, 0);
    u32 own = N / a.shares, quarters = t.columns / 4;
#pragma unroll 1
    for (u32 e = threadIdx.x; e < own * quarters; e += CONSUMERS) {
        u32 row = e / quarters, column = e % quarters * 4;
        u64 i = t.i + rank * own + row, j = t.j + column;
        if (i >= p.m || j >= p.n) continue;
        float y[4] = {}, up[4] = {};
        add_shares(y, sums, N, row, column, LINES, rank, a.shares);
        if (p.up.data) add_shares(up, sums, N, row, column + LINES / 2, LINES, rank, a.shares);
        finish_four(p, to, i, j, y, up);
    }
    if (a.shares > 1) cluster_meet(); // none leaves while its sums are on their way
}

#define ENTRY(name, format, rows)                                                                                                 \
    KERNEL void __launch_bounds__(CONSUMERS + 128, 1) name##_blocks_##rows(const __grid_constant__ Blocks a) {                    \
        u64 parameters;                                                                                                           \
        PARAMETERS(name##_blocks_##rows, parameters);                                                                             \
        blocks<Only<format>, rows>(a, parameters);                                                                                \
    }
ENTRY(q4_0, Q4_0, 64)
ENTRY(q4_0, Q4_0, 128)
ENTRY(q8_0, Q8_0, 64)
ENTRY(q8_0, Q8_0, 128)
ENTRY(q4_k, Q4_K, 64)
ENTRY(q4_k, Q4_K, 128)
