// Mamba-2's scan in chunks of 32 steps, as products on tensor cores, for 64 or 128 states and rows that are multiples of 32. With cum_i the sum of dt a up
// to step i of a chunk, and S what the state was before it:
//
//     out = exp(cum_i) C S' + M X     32 x N x 32 and 32 x 32 x 32; M = (C B')_ij exp(cum_i - cum_j) dt_j for j <= i, else 0
//     S   = exp(cum_31) S + X' B      32 x 32 x N; X = dt_j exp(cum_31 - cum_j) x_j
//
// C B' of a chunk is the same for all heads of a group: a launch before makes it, in f32. Then a block has 32 rows of one head through all time; the next
// chunk is on its way to registers meanwhile. Products keep f32's accuracy: a number is the sum of two that tf32 holds, and of their four products three are
// added up (Tf32 reads the upper 19 bits).
// Traffic: x, out, dt once; b and c once for each block, from cache. Floor: 64 heads of 64 rows, 128 states, 2048 steps are 2.4e9 multiply-adds, three times on
// tensor cores: 45 us at an H200's 640 a clock and processor; 34 MB of x and out 16 us. Predicted: 100 us, one block of 8 warps on each processor. Measured there:
// 239 us (3.7 us a chunk: one block waits for its own barriers and loads), 231 us in bf16, 128 heads 471 us; 64 steps 18 us. Outputs and states one after the
// other: 259 us. Step by step: 487 us, 64 steps 21 us (ssm_scan.cu).
// Target: sm_80.
// Promised instructions: HMMA.
#include "rows.cuh"
#include "activation.cuh"
#include "mma.cuh"

struct Args {
    Tensor x, dt, a, b, c, out, d, dt_bias, z, state; // strides: within a head or over states, heads or groups, time, batch
    u64 t, heads, width, share, n, rows; // width: rows of a head; share: heads that share b and c
    u32 lanes, softplus;
    float* products; // scratch: [batch, groups, chunks, 32, 32]
    u64 groups, chunks;
};

#define THREADS 256
#define L 32 // steps of a chunk, and rows of a block
#define SHORT (L + 8) // of rows in shared memory: neighbours along a row and down a column lie in different banks

typedef Floats<4> Fours;
struct Pair {
    float x, y;
};

// Four neighbours, wherever they lie.
DEV Fours four(const Tensor& t, i64 i, bool in_place) {
    if (in_place) return load_floats<4>(t, i);
    return {load_float(t, i), load_float(t, i + 1), load_float(t, i + 2), load_float(t, i + 3)};
}
DEV i64 group_of(const Args& p, const Tensor& t, u64 batch, u64 group) {
    return batch * t.stride[3] + group * t.stride[1];
}

// C B' of one chunk and group: each thread two by two.
template <int N> DEV void products(const Args& p) {
    __shared__ float bs[L][N + 1], cs[L][N + 1];
    u64 chunk = blockIdx.x % (u32)p.chunks, group = blockIdx.x / (u32)p.chunks % (u32)p.groups, batch = blockIdx.x / (u32)p.chunks / (u32)p.groups;
    i64 b = group_of(p, p.b, batch, group), c = group_of(p, p.c, batch, group);
    bool b_in_place = in_fours(p.b), c_in_place = in_fours(p.c);
#pragma unroll
    for (u32 i = threadIdx.x; i < L * N / 4; i += THREADS) {
        u32 step = i / (N / 4), n = i % (N / 4) * 4;
        u64 t = chunk * L + step;
        Fours into = {}, from = {};
        if (t < p.t) {
            into = four(p.b, b + t * p.b.stride[2] + n, b_in_place);
            from = four(p.c, c + t * p.c.stride[2] + n, c_in_place);
        }
#pragma unroll
        for (u32 u = 0; u < 4; u++) {
            bs[step][n + u] = into.x[u];
            cs[step][n + u] = from.x[u];
        }
    }
    __syncthreads();
    u32 i = threadIdx.x / 16 * 2, j = threadIdx.x % 16 * 2;
    float sum[2][2] = {};
#pragma unroll 8
    for (u32 n = 0; n < N; n++) {
#pragma unroll
        for (u32 u = 0; u < 4; u++) sum[u / 2][u % 2] += cs[i + u / 2][n] * bs[j + u % 2][n];
    }
    float* to = p.products + (u64)blockIdx.x * (L * L) + i * L + j;
#pragma unroll
    for (u32 u = 0; u < 4; u++) to[u / 2 * L + u % 2] = sum[u / 2][u % 2];
}

// A number as the sum of two that tf32 holds.
struct Split {
    u32 high, low;
};
DEV Split split(float x) {
    u32 high = __float_as_uint(x) & 0xffffe000u;
    return {high, __float_as_uint(x - __uint_as_float(high))};
}
// sum += a b for 16 x 8 by 8 columns; `left` and `right` collect what is small on that side.
DEV void multiply(float (&sum)[4], float (&left)[4], float (&right)[4], const Split (&a)[4], Split b0, Split b1) {
    u32 high[4] = {a[0].high, a[1].high, a[2].high, a[3].high}, low[4] = {a[0].low, a[1].low, a[2].low, a[3].low};
    Tf32::mma(sum, high, b0.high, b1.high);
    Tf32::mma(right, high, b0.low, b1.low);
    Tf32::mma(left, low, b0.high, b1.high);
}

template <int N> DEV void chunks(const Args& p) {
    enum { W = N + 8, LOADS = L * N / 4 / THREADS, TILES = N / 64 }; // TILES: of 8 states that a warp has
    extern __shared__ float memory[];
    float *bs = memory, *cs = bs + L * W, *states = cs + L * W, *weights = states + L * W, *xs = weights + L * SHORT, *inputs = xs + L * SHORT;
    u32 width = (u32)p.width, heads = (u32)p.heads, parts = width / L;
    u32 part = blockIdx.x % parts, head = blockIdx.x / parts % heads, batch = blockIdx.x / parts / heads;
    u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32, high = lane / 4, low = lane % 4, row = part * L;
    u32 group = head / (u32)p.share;
    i64 b = group_of(p, p.b, batch, group), c = group_of(p, p.c, batch, group);
    i64 x = batch * p.x.stride[3] + head * p.x.stride[1] + row * p.x.stride[0], dt = batch * p.dt.stride[2] + head * p.dt.stride[0];
    i64 out = batch * p.out.stride[3] + head * p.out.stride[1] + row * p.out.stride[0];
    i64 state = batch * p.state.stride[3] + head * p.state.stride[2] + row * p.state.stride[1];
    const float* products = p.products + (batch * p.groups + group) * p.chunks * (L * L);
    float a = load_float(p.a, head * p.a.stride[0]), skip = p.d.data ? load_float(p.d, head * p.d.stride[0]) : 0.0f;
    float bias = p.dt_bias.data ? load_float(p.dt_bias, head * p.dt_bias.stride[0]) : 0.0f;
    // The states of a warp: 32 rows by 8 TILES, as the products' fragments.
    float held[2][TILES][4];
    auto place = [&](u32 m, u32 n, u32 i) { return state + (m * 16 + high + i / 2 * 8) * p.state.stride[1] + ((warp * TILES + n) * 8 + low * 2 + i % 2) * p.state.stride[0]; };
#pragma unroll
    for (u32 m = 0; m < 2; m++) {
#pragma unroll
        for (u32 n = 0; n < TILES; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) held[m][n][i] = p.state.data ? load_float(p.state, place(m, n, i)) : 0.0f;
        }
    }

    // What is beyond the end is read from the last step; its time is 0, so that it changes nothing.
    u64 last = p.t - 1;
    Bits next_b[LOADS], next_c[LOADS], next_x;
    Fours next_products;
    u32 step = thread / 8, four_of = thread % 8 * 4; // the step and columns of x and of the products that are this thread's
    auto fetch = [&](u64 first) {
#pragma unroll
        for (u32 l = 0; l < LOADS; l++) {
            u32 i = l * THREADS + thread, n = i % (N / 4) * 4;
            u64 t = first + i / (N / 4) < p.t ? first + i / (N / 4) : last;
            next_b[l] = bits_of(p.b, b + t * p.b.stride[2] + n);
            next_c[l] = bits_of(p.c, c + t * p.c.stride[2] + n);
        }
        next_x = bits_of(p.x, x + (first + step < p.t ? first + step : last) * p.x.stride[2] + four_of);
        next_products = *(const Fours*)(products + first * L + step * L + four_of);
    };
    // Every warp has a chunk's steps, one of each lane: their times, and the sums of their decays' exponents.
    auto word = [&](u64 first) { return word_of(p.dt, dt + (first + lane < p.t ? first + lane : last) * p.dt.stride[1]); };
    auto clock = [&](u64 first, Word w, float& time, float& sum) {
        time = decode(p.dt, w) + bias;
        time = p.softplus ? softplus(time) : time;
        time = first + lane < p.t ? time : 0.0f;
        // What e^-110 leaves is nothing in f32; a larger sum would swallow what the steps after it add. Nothing happens beyond the end.
        sum = first + lane < p.t ? time * a : 0.0f;
        sum = sum < -110.0f ? -110.0f : sum; // NaN stays
#pragma unroll
        for (u32 s = 1; s < 32; s *= 2) {
            float before = __shfl_up_sync(0xffffffffu, sum, s);
            sum += lane >= s ? before : 0.0f;
        }
    };
    float time, sum;
    fetch(0);
    clock(0, word(0), time, sum);
    Word next_word = word(L);
#pragma unroll 1
    for (u64 first = 0; first < p.t; first += L) {
        float all = __shfl_sync(0xffffffffu, sum, 31), mine = __shfl_sync(0xffffffffu, sum, step);
        float input = __shfl_sync(0xffffffffu, time, step) * expf(all - mine);
        Fours x_of = decode(p.x, next_x), weight;
#pragma unroll
        for (u32 u = 0; u < 4; u++) {
            float there = __shfl_sync(0xffffffffu, sum, four_of + u), by = __shfl_sync(0xffffffffu, time, four_of + u);
            weight.x[u] = four_of + u <= step ? next_products.x[u] * by * expf(mine - there) : 0.0f;
        }
        __syncthreads(); // the chunk before is done with
#pragma unroll
        for (u32 l = 0; l < LOADS; l++) {
            u32 i = l * THREADS + thread, at = i / (N / 4) * W + i % (N / 4) * 4;
            *(Fours*)(bs + at) = decode(p.b, next_b[l]);
            *(Fours*)(cs + at) = decode(p.c, next_c[l]);
        }
        *(Fours*)(xs + step * SHORT + four_of) = x_of;
        *(Fours*)(weights + step * SHORT + four_of) = weight;
#pragma unroll
        for (u32 u = 0; u < 4; u++) x_of.x[u] *= input;
        *(Fours*)(inputs + step * SHORT + four_of) = x_of;
#pragma unroll
        for (u32 m = 0; m < 2; m++) {
#pragma unroll
            for (u32 n = 0; n < TILES; n++) {
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    *(Pair*)(states + (m * 16 + high + half * 8) * W + (warp * TILES + n) * 8 + low * 2) = {held[m][n][half * 2], held[m][n][half * 2 + 1]};
                }
            }
        }
        __syncthreads();
        if (first + L < p.t) fetch(first + L);
        float next_time, next_sum;
        clock(first + L, next_word, next_time, next_sum);
        next_word = word(first + 2 * L);

        // Outputs: a warp has 16 steps and 8 rows. States: it has all 32 rows. Both go on together, as neither waits for the other.
        u32 steps = warp % 2 * 16, rows = warp / 2 * 8;
        float y[4] = {}, small[2][4] = {}, decay = expf(all), rest[2][TILES][4] = {};
#pragma unroll
        for (u32 m = 0; m < 2; m++) {
#pragma unroll
            for (u32 n = 0; n < TILES; n++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) held[m][n][i] *= decay;
            }
        }
        Split left[2][4], r0, r1;
#pragma unroll
        for (u32 q = 0; q < N / 8; q++) {
            {
                // Two neighbours are the products' k-th and k + 4-th, on both sides.
                u32 k = q * 8 + low * 2;
                Pair l = *(const Pair*)(cs + (steps + high) * W + k), h = *(const Pair*)(cs + (steps + high + 8) * W + k);
                Pair r = *(const Pair*)(states + (rows + high) * W + k);
                Split both[4] = {split(l.x), split(h.x), split(l.y), split(h.y)};
                multiply(y, small[0], small[1], both, split(r.x), split(r.y));
            }
            u32 k = q / (2 * TILES) * 8 + low, m = q % 2, n = q / 2 % TILES;
            if (n == 0) {
                const float* l = inputs + k * SHORT + m * 16 + high;
                left[m][0] = split(l[0]);
                left[m][1] = split(l[8]);
                left[m][2] = split(l[4 * SHORT]);
                left[m][3] = split(l[4 * SHORT + 8]);
            }
            if (m == 0) {
                const float* r = bs + k * W + (warp * TILES + n) * 8 + high;
                r0 = split(r[0]);
                r1 = split(r[4 * W]);
            }
            multiply(held[m][n], rest[m][n], rest[m][n], left[m], r0, r1);
        }
        float upper = expf(__shfl_sync(0xffffffffu, sum, steps + high)), lower = expf(__shfl_sync(0xffffffffu, sum, steps + high + 8));
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            y[i] = (y[i] + (small[0][i] + small[1][i])) * (i < 2 ? upper : lower);
            small[0][i] = small[1][i] = 0.0f;
        }
#pragma unroll
        for (u32 k = 0; k < L; k += 8) {
            const float *l = weights + (steps + high) * SHORT + k + low, *r = xs + (k + low) * SHORT + rows + high;
            Split both[4] = {split(l[0]), split(l[8 * SHORT]), split(l[4]), split(l[8 * SHORT + 4])};
            multiply(y, small[0], small[1], both, split(r[0]), split(r[4 * SHORT]));
        }
#pragma unroll
        for (u32 m = 0; m < 2; m++) {
#pragma unroll
            for (u32 n = 0; n < TILES; n++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) held[m][n][i] += rest[m][n][i];
            }
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 s = steps + high + i / 2 * 8, r = rows + low * 2 + i % 2;
            float value = y[i] + (small[0][i] + small[1][i]);
            if (p.d.data) value += skip * xs[s * SHORT + r];
            if (first + s < p.t) store(p.out, out + (first + s) * p.out.stride[2] + r * p.out.stride[0], value);
        }
        time = next_time;
        sum = next_sum;
    }
    if (!p.state.data) return;
#pragma unroll
    for (u32 m = 0; m < 2; m++) {
#pragma unroll
        for (u32 n = 0; n < TILES; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) store(p.state, place(m, n, i), held[m][n][i]);
        }
    }
}

KERNEL void __launch_bounds__(256) products_64(const __grid_constant__ Args p) {
    products<64>(p);
}
KERNEL void __launch_bounds__(256) products_128(const __grid_constant__ Args p) {
    products<128>(p);
}
KERNEL void __launch_bounds__(256, 1) chunks_64(const __grid_constant__ Args p) {
    chunks<64>(p);
}
KERNEL void __launch_bounds__(256, 1) chunks_128(const __grid_constant__ Args p) {
    chunks<128>(p);
}
