// Mamba-2's scan for 64 or 128 states, whose rows are multiples of 32. A block has 32 rows of one head through all time, half a warp two of
// them: each of its 16 lanes 4 or 8 states of both in registers. What 16 steps need lies in shared memory, b and c as they are, x times dt
// and the decays computed once; meanwhile the next 16 steps' are on their way to registers. The two sums over states go through four
// shuffles together, and outputs leave in lines.
//
//     a step of a half warp: 2 rows x 16 lanes x (b, c as float4; 3 multiply-adds a state)
//
// Traffic: x, out, dt once; b and c once for each block, from cache. Floor: 3 instructions for each row, state and step; 64 heads of 64
// rows, 128 states, 2048 steps are 3.2e9 of them, 0.11 ms at an H200's 29e12 a second. Measured there: 0.48 ms (400 cycles a step), 128 heads
// 0.67 ms, one step of 64 heads 6.7 us. Before, 16 lanes had one row of any width and waited for each load of b and c: 5.4 and 9.3 ms.
// More than a few steps go in chunks, as products on tensor cores (ssm_chunks.cu).
#include "elements.cuh"
#include "activation.cuh"

struct Args {
    Tensor x, dt, a, b, c, out, d, dt_bias, z, state; // strides: within a head or over states, heads or groups, time, batch
    u64 t, heads, width, share, n, rows; // width: rows of a head; share: heads that share b and c
    u32 lanes, softplus;
};

#define THREADS 256
#define STEPS 16
#define ROWS 32

// Four neighbours, wherever they lie.
DEV Floats<4> four(const Tensor& t, i64 i, bool in_place) {
    if (in_place) return load_floats<4>(t, i);
    return {load_float(t, i), load_float(t, i + 1), load_float(t, i + 2), load_float(t, i + 3)};
}

template <int N> DEV void scan(const Args& p) {
    enum { HELD = N / 16, FOURS = HELD / 4, LOADS = STEPS * N / 4 / THREADS }; // states of a lane, and what a thread loads of b
    __shared__ Floats<4> bs[STEPS][N / 4], cs[STEPS][N / 4];
    __shared__ float inputs[STEPS][ROWS], plain[STEPS][ROWS], outputs[STEPS][ROWS], decays[STEPS], steps_of[STEPS];
    u32 width = (u32)p.width, heads = (u32)p.heads, parts = width / ROWS;
    u32 part = blockIdx.x % parts, head = blockIdx.x / parts % heads, batch = blockIdx.x / parts / heads;
    u32 thread = threadIdx.x, lane = thread % 16, pair = thread / 16, row = part * ROWS;
    i64 b = batch * p.b.stride[3] + head / (u32)p.share * p.b.stride[1], c = batch * p.c.stride[3] + head / (u32)p.share * p.c.stride[1];
    i64 x = batch * p.x.stride[3] + head * p.x.stride[1] + row * p.x.stride[0], dt = batch * p.dt.stride[2] + head * p.dt.stride[0];
    i64 out = batch * p.out.stride[3] + head * p.out.stride[1] + row * p.out.stride[0];
    i64 state = batch * p.state.stride[3] + head * p.state.stride[2] + (row + pair * 2) * p.state.stride[1];
    float a = load_float(p.a, head * p.a.stride[0]), skip = p.d.data ? load_float(p.d, head * p.d.stride[0]) : 0.0f;
    float bias = p.dt_bias.data ? load_float(p.dt_bias, head * p.dt_bias.stride[0]) : 0.0f;
    bool b_in_place = in_fours(p.b), c_in_place = in_fours(p.c);

    // State `i` of the lane: fours of neighbours, 64 apart.
    float held[2][HELD];
    auto place = [&](int i) { return i / 4 * 64 + lane * 4 + i % 4; };
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int i = 0; i < HELD; i++) held[r][i] = p.state.data ? load_float(p.state, state + r * p.state.stride[1] + place(i) * p.state.stride[0]) : 0.0f;
    }

    Floats<4> next_b[LOADS], next_c[LOADS];
    float next_x[STEPS * ROWS / THREADS], next_dt = 0.0f;
    auto fetch = [&](u64 first) {
#pragma unroll
        for (u32 l = 0; l < LOADS; l++) {
            u32 i = l * THREADS + thread, step = i / (N / 4), n = i % (N / 4) * 4;
            if (first + step >= p.t) continue;
            next_b[l] = four(p.b, b + (first + step) * p.b.stride[2] + n, b_in_place);
            next_c[l] = four(p.c, c + (first + step) * p.c.stride[2] + n, c_in_place);
        }
#pragma unroll
        for (u32 l = 0; l < STEPS * ROWS / THREADS; l++) {
            u64 t = first + l * (THREADS / ROWS) + thread / ROWS;
            next_x[l] = t < p.t ? load_float(p.x, x + t * p.x.stride[2] + thread % ROWS * p.x.stride[0]) : 0.0f;
        }
        if (thread < STEPS && first + thread < p.t) next_dt = load_float(p.dt, dt + (first + thread) * p.dt.stride[1]);
    };
    fetch(0);
#pragma unroll 1
    for (u64 first = 0; first < p.t; first += STEPS) {
        u32 steps = p.t - first < STEPS ? (u32)(p.t - first) : STEPS;
        if (thread < STEPS) {
            float step = next_dt + bias;
            step = p.softplus ? softplus(step) : step;
            steps_of[thread] = step;
            decays[thread] = expf(step * a);
        }
#pragma unroll
        for (u32 l = 0; l < LOADS; l++) {
            u32 i = l * THREADS + thread;
            bs[i / (N / 4)][i % (N / 4)] = next_b[l];
            cs[i / (N / 4)][i % (N / 4)] = next_c[l];
        }
        __syncthreads();
#pragma unroll
        for (u32 l = 0; l < STEPS * ROWS / THREADS; l++) {
            u32 step = l * (THREADS / ROWS) + thread / ROWS;
            plain[step][thread % ROWS] = next_x[l];
            inputs[step][thread % ROWS] = steps_of[step] * next_x[l];
        }
        __syncthreads();
        if (first + STEPS < p.t) fetch(first + STEPS);
#pragma unroll 1
        for (u32 step = 0; step < steps; step++) {
            float decay = decays[step], in[2] = {inputs[step][pair * 2], inputs[step][pair * 2 + 1]}, sums[2] = {0.0f, 0.0f};
#pragma unroll
            for (int f = 0; f < FOURS; f++) {
                Floats<4> into = bs[step][f * 16 + lane], from = cs[step][f * 16 + lane];
#pragma unroll
                for (int u = 0; u < 4; u++) {
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        float& s = held[r][f * 4 + u];
                        s = decay * s + in[r] * into.x[u];
                        sums[r] += from.x[u] * s;
                    }
                }
            }
            // An even lane goes on with the first row, an odd one with the second.
            float mine = lane & 1 ? sums[1] : sums[0], other = lane & 1 ? sums[0] : sums[1];
            mine += __shfl_xor_sync(0xffffffffu, other, 1);
#pragma unroll
            for (u32 s = 2; s < 16; s *= 2) mine += __shfl_xor_sync(0xffffffffu, mine, s);
            if (lane < 2) outputs[step][pair * 2 + lane] = mine;
        }
        __syncthreads();
#pragma unroll
        for (u32 l = 0; l < STEPS * ROWS / THREADS; l++) {
            u32 step = l * (THREADS / ROWS) + thread / ROWS, r = thread % ROWS;
            if (step >= steps) continue;
            float y = outputs[step][r];
            if (p.d.data) y += skip * plain[step][r];
            store(p.out, out + (first + step) * p.out.stride[2] + r * p.out.stride[0], y);
        }
    }
    if (!p.state.data) return;
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int i = 0; i < HELD; i++) store(p.state, state + r * p.state.stride[1] + place(i) * p.state.stride[0], held[r][i]);
    }
}

KERNEL void __launch_bounds__(THREADS, 2) states_64(const __grid_constant__ Args p) {
    scan<64>(p);
}
KERNEL void __launch_bounds__(THREADS, 2) states_128(const __grid_constant__ Args p) {
    scan<128>(p);
}
