// State-space scans. Mamba-1 with 16 states: four lanes have a channel, four states of a lane in registers, so that neighbours read neighbours of x, dt, z; 16
// steps' inputs come through shared memory while the next 16 are on their way to registers. A step of a lane waits for one multiply-add of its state; sums over
// the lanes of four steps go through three shuffles together. Floor: 256 steps of 4096 channels of 16 states are 17e6 exponentials, 5 us at an H200's 16 a
// clock and processor, and 13 MB, 3 us. Predicted: 12 us. Measured there: 35 us (135 ns a step, whatever the number of channels, up to 4096), one step 5.5 us;
// 41 us with loads that depend on a branch by type.
//
// Anything else: a group of `lanes` lanes has one row of a head's state (Mamba-1: one channel's) in registers through all time, eight states of a lane at most;
// the sum over states is a few shuffles. Where all rows of a block are of one head (Mamba-1: of one sequence) their inputs come through shared memory, 16
// steps at a time. Traffic: x, dt, b, c and out once (b and c of a group from cache), the state twice. Measured on an H200: 256 steps of 4096 channels
// of 16 states 0.17 ms.
#include "rows.cuh"
#include "activation.cuh"

struct Args {
    Tensor x, dt, a, b, c, out, d, dt_bias, z, state; // strides: within a head or over states, heads or groups, time, batch
    u64 t, heads, width, share, n, rows; // width: rows of a head; share: heads that share b and c
    u32 lanes, softplus;
};

#define STEPS 16
#define MOST 128 // states whose inputs fit shared memory

template <bool per_state> DEV void scan(const Args& p) {
    __shared__ float bs[STEPS][MOST], cs[STEPS][MOST], dts[STEPS][128], xs[STEPS][128];
    u32 lane = threadIdx.x % p.lanes;
    u32 group = blockIdx.x * (128 / p.lanes) + threadIdx.x / p.lanes;
    bool live = group < p.rows; // the others take part in the shuffles
    if (!live) group = 0;
    u32 width = (u32)p.width, heads = (u32)p.heads;
    u64 row = group % width, head = group / width % heads, batch = group / width / heads;
    i64 b = batch * p.b.stride[3] + (u32)head / (u32)p.share * p.b.stride[1], c = batch * p.c.stride[3] + (u32)head / (u32)p.share * p.c.stride[1];
    i64 x = batch * p.x.stride[3] + head * p.x.stride[1] + row * p.x.stride[0], dt_at = batch * p.dt.stride[2] + head * p.dt.stride[0];
    i64 out = batch * p.out.stride[3] + head * p.out.stride[1] + row * p.out.stride[0];
    i64 z = batch * p.z.stride[3] + head * p.z.stride[1] + row * p.z.stride[0];
    i64 state_at = batch * p.state.stride[3] + head * p.state.stride[2] + row * p.state.stride[1];
    float state[8], a[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u64 n = lane + i * p.lanes;
        bool held = n < p.n;
        a[i] = per_state && held ? load_float(p.a, head * p.a.stride[0] + n * p.a.stride[1]) : 0.0f;
        state[i] = p.state.data && held ? load_float(p.state, state_at + n * p.state.stride[0]) : 0.0f;
    }
    if (!per_state) a[0] = load_float(p.a, head * p.a.stride[0]);
    float skip = p.d.data ? load_float(p.d, head * p.d.stride[0]) : 0.0f;
    float bias = p.dt_bias.data ? load_float(p.dt_bias, head * p.dt_bias.stride[0]) : 0.0f;
    u32 rows = 128 / p.lanes, mine = threadIdx.x / p.lanes; // rows of the block, and which of them is this thread's
    bool staged = p.n <= MOST && (per_state ? heads : width) % rows == 0;
#pragma unroll 1
    for (u64 first = 0; first < p.t; first += STEPS) {
        u32 steps = p.t - first < STEPS ? (u32)(p.t - first) : STEPS;
        if (staged) {
            __syncthreads(); // the steps before are done with
#pragma unroll 1
            for (u32 i = threadIdx.x; i < steps * (u32)p.n; i += 128) {
                u32 step = i / (u32)p.n, n = i % (u32)p.n;
                bs[step][n] = load_float(p.b, b + (first + step) * p.b.stride[2] + n * p.b.stride[0]);
                cs[step][n] = load_float(p.c, c + (first + step) * p.c.stride[2] + n * p.c.stride[0]);
            }
        }
        // Each group of lanes reads what is its row's alone: lane l of 16 or fewer the steps l, l + lanes ..
#pragma unroll 1
        for (u32 step = lane; step < steps; step += p.lanes) {
            u64 t = first + step;
            float dt = load_float(p.dt, dt_at + t * p.dt.stride[1]) + bias;
            dts[step][mine] = p.softplus ? softplus(dt) : dt;
            xs[step][mine] = load_float(p.x, x + t * p.x.stride[2]);
        }
        __syncthreads();
#pragma unroll 1
        for (u32 step_of = 0; step_of < steps; step_of++) {
            u64 t = first + step_of;
            float dt = dts[step_of][mine], input = xs[step_of][mine], step = dt * input, sum = 0.0f;
            float decay = per_state ? 0.0f : expf(dt * a[0]);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                u64 n = lane + i * p.lanes;
                if (n < p.n) {
                    float kept = per_state ? expf(dt * a[i]) : decay;
                    float in = staged ? bs[step_of][n] : load_float(p.b, b + t * p.b.stride[2] + n * p.b.stride[0]);
                    float by = staged ? cs[step_of][n] : load_float(p.c, c + t * p.c.stride[2] + n * p.c.stride[0]);
                    state[i] = kept * state[i] + step * in;
                    sum += by * state[i];
                }
            }
            for (u32 s = p.lanes / 2; s > 0; s /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, s);
            if (lane == 0 && live) {
                if (p.d.data) sum += skip * input;
                if (p.z.data) sum *= silu(load_float(p.z, z + t * p.z.stride[2]));
                store(p.out, out + t * p.out.stride[2], sum);
            }
        }
        __syncthreads();
    }
    if (!p.state.data || !live) return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u64 n = lane + i * p.lanes;
        if (n < p.n) store(p.state, state_at + n * p.state.stride[0], state[i]);
    }
}

// A decay per head.
KERNEL void __launch_bounds__(128, 4) ssm_scan(const __grid_constant__ Args p) {
    scan<false>(p);
}

// A decay per channel and state.
KERNEL void __launch_bounds__(128, 4) selective_scan(const __grid_constant__ Args p) {
    scan<true>(p);
}

#define CHANNELS 32
#define WIDE 40 // of rows of channels in shared memory
#define MINE 4  // of a thread: steps of a channel, and states

KERNEL void __launch_bounds__(128, 4) selective_16(const __grid_constant__ Args p) {
    __shared__ float dts[STEPS][WIDE], inputs[STEPS][WIDE], outputs[STEPS][WIDE];
    __shared__ alignas(16) float bs[STEPS][16], cs[STEPS][16];
    u32 channels = (u32)p.heads, parts = (channels + CHANNELS - 1) / CHANNELS;
    u64 batch = blockIdx.x / parts, first_channel = blockIdx.x % parts * CHANNELS;
    // A thread computes with one channel, and reads and writes another: neighbours neighbours.
    u32 mine = threadIdx.x / 4, quarter = threadIdx.x % 4, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 computed = first_channel + mine, moved = first_channel + lane;
    bool computes = computed < channels, moves = moved < channels;
    i64 state_at = batch * p.state.stride[3] + computed * p.state.stride[2];
    float a[MINE], state[MINE];
#pragma unroll
    for (u32 i = 0; i < MINE; i++) {
        u64 n = quarter * MINE + i;
        a[i] = computes ? load_float(p.a, computed * p.a.stride[0] + n * p.a.stride[1]) * 1.44269504f : 0.0f; // log2 e
        state[i] = computes && p.state.data ? load_float(p.state, state_at + n * p.state.stride[0]) : 0.0f;
    }
    float skip = moves && p.d.data ? load_float(p.d, moved * p.d.stride[0]) : 0.0f;
    float bias = moves && p.dt_bias.data ? load_float(p.dt_bias, moved * p.dt_bias.stride[0]) : 0.0f;
    auto at = [&](const Tensor& t, u64 i) { return (i64)(batch * t.stride[3] + i * t.stride[2] + moved * t.stride[1]); };

    // What is beyond the ends is read from what is there, and not used.
    Word next_x[MINE], next_dt[MINE], next_z[MINE], next_b[2], next_c[2];
    u64 there = moves ? moved : first_channel, last = p.t - 1;
    const Tensor& gate = p.z.data ? p.z : p.x;
    auto fetch = [&](u64 first) {
#pragma unroll
        for (u32 l = 0; l < MINE; l++) {
            u64 t = first + l * 4 + warp < p.t ? first + l * 4 + warp : last;
            next_x[l] = word_of(p.x, batch * p.x.stride[3] + t * p.x.stride[2] + there * p.x.stride[1]);
            next_dt[l] = word_of(p.dt, batch * p.dt.stride[2] + t * p.dt.stride[1] + there * p.dt.stride[0]);
            next_z[l] = word_of(gate, batch * gate.stride[3] + t * gate.stride[2] + there * gate.stride[1]);
        }
#pragma unroll
        for (u32 l = 0; l < 2; l++) {
            u64 t = first + l * 8 + threadIdx.x / 16, n = threadIdx.x % 16;
            t = t < p.t ? t : last;
            next_b[l] = word_of(p.b, batch * p.b.stride[3] + t * p.b.stride[2] + n * p.b.stride[0]);
            next_c[l] = word_of(p.c, batch * p.c.stride[3] + t * p.c.stride[2] + n * p.c.stride[0]);
        }
    };
    fetch(0);
#pragma unroll 1
    for (u64 first = 0; first < p.t; first += STEPS) {
        float x[MINE], z[MINE];
#pragma unroll
        for (u32 l = 0; l < MINE; l++) {
            u32 step = l * 4 + warp;
            float dt = decode(p.dt, next_dt[l]) + bias;
            x[l] = decode(p.x, next_x[l]);
            z[l] = decode(gate, next_z[l]);
            dt = p.softplus ? softplus(dt) : dt;
            bool inside = first + step < p.t; // beyond the end nothing changes
            dts[step][lane] = inside ? dt : 0.0f;
            inputs[step][lane] = inside ? dt * x[l] : 0.0f;
        }
#pragma unroll
        for (u32 l = 0; l < 2; l++) {
            bs[l * 8 + threadIdx.x / 16][threadIdx.x % 16] = decode(p.b, next_b[l]);
            cs[l * 8 + threadIdx.x / 16][threadIdx.x % 16] = decode(p.c, next_c[l]);
        }
        __syncthreads();
        if (first + STEPS < p.t) fetch(first + STEPS);
#pragma unroll 2
        for (u32 four = 0; four < STEPS; four += 4) {
            float sums[4] = {};
#pragma unroll
            for (u32 u = 0; u < 4; u++) {
                struct alignas(16) Fours {
                    float x[4];
                } b = *(const Fours*)&bs[four + u][quarter * 4], c = *(const Fours*)&cs[four + u][quarter * 4];
                float dt = dts[four + u][mine], input = inputs[four + u][mine];
#pragma unroll
                for (u32 i = 0; i < MINE; i++) {
                    float kept;
                    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(kept) : "f"(dt * a[i]));
                    state[i] = kept * state[i] + input * b.x[i];
                    sums[u] += c.x[i] * state[i];
                }
            }
            // Lane `quarter` of a channel goes on with the step of that number.
            bool odd = quarter & 1, late = quarter & 2;
            float even = (odd ? sums[1] : sums[0]) + __shfl_xor_sync(0xffffffffu, odd ? sums[0] : sums[1], 1);
            float last = (odd ? sums[3] : sums[2]) + __shfl_xor_sync(0xffffffffu, odd ? sums[2] : sums[3], 1);
            outputs[four + quarter][mine] = (late ? last : even) + __shfl_xor_sync(0xffffffffu, late ? even : last, 2);
        }
        __syncthreads();
#pragma unroll
        for (u32 l = 0; l < MINE; l++) {
            u32 step = l * 4 + warp;
            float y = outputs[step][lane] + skip * x[l];
            if (p.z.data) y *= silu(z[l]);
            if (moves && first + step < p.t) store(p.out, at(p.out, first + step), y);
        }
    }
    if (!p.state.data || !computes) return;
#pragma unroll
    for (u32 i = 0; i < MINE; i++) store(p.state, state_at + (quarter * MINE + i) * p.state.stride[0], state[i]);
}
