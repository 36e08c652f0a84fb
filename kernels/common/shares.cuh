// What Hopper's products share: the registers of a warpgroup's sums, what follows four of them, and clusters whose blocks share k of a tile.
#pragma once
#include "product.cuh"
#include "hopper.cuh"

struct alignas(8) Pair {
    float low, high;
};
struct alignas(8) U2 {
    u32 x, y;
};
struct alignas(16) Float4 {
    float x, y, z, w;
};

// The registers of sums of so many columns, and the three operands behind them.
#define EIGHT(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_32 EIGHT(0), EIGHT(8)
#define SUMS_48 SUMS_32, EIGHT(16)
#define SUMS_64 SUMS_48, EIGHT(24)
#define SUMS_80 SUMS_64, EIGHT(32)
#define SUMS_96 SUMS_80, EIGHT(40)
#define SUMS_112 SUMS_96, EIGHT(48)
#define SUMS_128 SUMS_112, EIGHT(56)
#define SUMS_144 SUMS_128, EIGHT(64)
#define SUMS_160 SUMS_144, EIGHT(72)
#define SUMS_176 SUMS_160, EIGHT(80)
#define SUMS_192 SUMS_176, EIGHT(88)
#define SUMS_208 SUMS_192, EIGHT(96)
#define SUMS_224 SUMS_208, EIGHT(104)
#define SUMS_240 SUMS_224, EIGHT(112)
#define SUMS_256 SUMS_240, EIGHT(120)
#define NAMES_32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define NAMES_48 NAMES_32 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define NAMES_64 NAMES_48 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_80 NAMES_64 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define NAMES_96 NAMES_80 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define NAMES_112 NAMES_96 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define NAMES_128 NAMES_112 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES_144 NAMES_128 ",%64,%65,%66,%67,%68,%69,%70,%71"
#define NAMES_160 NAMES_144 ",%72,%73,%74,%75,%76,%77,%78,%79"
#define NAMES_176 NAMES_160 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define NAMES_192 NAMES_176 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define NAMES_208 NAMES_192 ",%96,%97,%98,%99,%100,%101,%102,%103"
#define NAMES_224 NAMES_208 ",%104,%105,%106,%107,%108,%109,%110,%111"
#define NAMES_240 NAMES_224 ",%112,%113,%114,%115,%116,%117,%118,%119"
#define NAMES_256 NAMES_240 ",%120,%121,%122,%123,%124,%125,%126,%127"
// Some of four elements, in a row or apart.
DEV void load_some(const Tensor& t, i64 at, i64 stride, u32 count, float (&f)[4]) {
#pragma unroll
    for (u32 u = 0; u < 4; u++) f[u] = 0.0f;
    switch (t.type) {
#define CASE(type, decoded)                                                                                                       \
    _Pragma("unroll") for (u32 u = 0; u < 4; u++) {                                                                               \
        if (u < count) f[u] = decoded(((const type*)t.data)[at + u * stride]);                                                    \
    }                                                                                                                             \
    break;
        case F32: CASE(float, )
        case F16: CASE(u16, f16_decode)
        default: CASE(u16, bf16_decode)
#undef CASE
    }
}
// `finish` of four neighbours, or as many as there are: their loads do not wait for each other.
DEV void finish_four(const Args& p, const Place& to, u64 i, u64 j, float (&y)[4], const float (&up)[4]) {
    u32 count = p.n - j < 4 ? (u32)(p.n - j) : 4;
    float f[4], rows = p.x_scale.data ? load_float(p.x_scale, i * p.x_scale.stride[0]) : 1.0f;
#define EACH _Pragma("unroll") for (u32 u = 0; u < 4; u++)
    EACH y[u] *= rows;
    if (p.w_scales == OF_TENSOR || p.w_scales == OF_CHANNELS) {
        i64 stride = p.w_scales == OF_TENSOR ? 0 : p.w_scale.stride[0];
        load_some(p.w_scale, j * stride, stride, count, f);
        EACH y[u] *= f[u];
    }
    if (p.bias.data) {
        load_some(p.bias, j * p.bias.stride[0], p.bias.stride[0], count, f);
        EACH y[u] += f[u];
    }
    switch (p.act) {
        case SILU: EACH y[u] = silu(y[u]); break;
        case GELU_TANH: EACH y[u] = gelu_tanh(y[u]); break;
        case GELU_ERF: EACH y[u] = gelu_erf(y[u]); break;
        case RELU: EACH y[u] = relu(y[u]); break;
    }
    if (p.up.data) {
        EACH y[u] *= up[u];
    }
    rows = p.row_scale.data ? load_float(p.row_scale, i * p.row_scale.stride[0]) : 1.0f;
    EACH y[u] = y[u] * p.scale * rows;
    if (p.residual.data) {
        load_some(p.residual, to.residual + i * p.residual.stride[1] + j * p.residual.stride[0], p.residual.stride[0], count, f);
        EACH y[u] += f[u];
    }
    if (to.b < 0) { // rows of no group
        EACH y[u] = 0.0f;
    }
    i64 at = to.out + i * p.out.stride[1] + j * p.out.stride[0];
    bool whole = count == 4 && p.out.stride[0] == 1;
    if (whole && p.out.type == F32 && (u64)((float*)p.out.data + at) % 16 == 0) {
        *(Float4*)((float*)p.out.data + at) = {y[0], y[1], y[2], y[3]};
    } else if (whole && p.out.type == BF16 && (u64)((u16*)p.out.data + at) % 8 == 0) {
        *(U2*)((u16*)p.out.data + at) = {pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3])};
    } else if (whole && p.out.type == F16 && (u64)((u16*)p.out.data + at) % 8 == 0) {
        *(U2*)((u16*)p.out.data + at) = {pack_f16(y[0], y[1]), pack_f16(y[2], y[3])};
    } else {
        EACH if (u < count) store(p.out, at + u * p.out.stride[0], y[u]);
    }
#undef EACH
}

// Where a tile's sums lie, whose width is a multiple of 32.
DEV u32 shared_sum(u32 row, u32 column, u32 width) {
    return row * width + (column ^ (row & 3) << 3);
}
// Sends the others of the cluster their rows of these sums, `part` bytes each, and waits for theirs, which lie behind by rank, this block's left out.
DEV void exchange(const float* sums, u32 part, u32 rank, u32 shares, u32 met) {
    u32 own = shared_address(sums);
    if (threadIdx.x < 32) {
        if (elected()) {
            barrier_expect(met, (shares - 1) * part);
#pragma unroll 1
            for (u32 to = 0; to < shares; to++) {
                u32 slot = rank < to ? rank : rank - 1;
                if (to != rank) copy_there(address_at(own + shares * part + slot * part, to), own + to * part, part, address_at(met, to));
            }
        }
        __syncwarp(); // none waits in its place
    }
    barrier_wait(met, 0);
}
// Four sums of all blocks of the cluster, of this block's row `row` of a tile of `height`, added in the same order every time.
DEV void add_shares(float (&y)[4], const float* sums, u32 height, u32 row, u32 column, u32 width, u32 rank, u32 shares) {
    u32 rows = height / shares;
#pragma unroll 2
    for (u32 from = 0; from < shares; from++) {
        u32 first = from == rank ? rank * rows : height + (from < rank ? from : from - 1) * rows;
        const float* more = sums + first * width + shared_sum(row, column, width);
#pragma unroll
        for (u32 u = 0; u < 4; u++) y[u] += more[u];
    }
}
