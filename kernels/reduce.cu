// One number per row, or the row divided by its norm: a block per row, one pass (two for l2-normalize, the second from cache).
// The log-sum-exp keeps a running maximum and a sum relative to it. Traffic: x once. Estimate on an H200: 8192 rows of 4096 bf16
// are 67 MB, 16 us at 4.3 TB/s. Measured there, 512 rows of 4096 f32 from cache: sums 4.7 us, arg-max 6.3, log-sum-exp 7.7, normalized 6.5
// (one by one: 7.6, 9.1, 10.1, 11.3); sums of 8192 rows 43 us, 3.1 TB/s.
#include "elements.cuh"
#include "block.cuh"

enum Kind { SUM, MEAN, MAX, ARG_MAX, LOG_SUM_EXP, L2_NORMALIZE };

struct Args {
    Tensor x, out, mask;
    u64 extent[6]; // of the rows, innermost first
    u64 n;
    u64 fours; // whether rows may be read by fours, and normalized ones written
    u32 kind;
    float eps;
};

struct Row {
    i64 x, out, mask;
};

template <int W> DEV void reduce_row(const Args& p, const Row& r) {
    __shared__ float shared[8];
    __shared__ Pick picks[8];
    float sum = 0.0f, count = 0.0f, largest = -INFINITE;
    Pick best = NO_PICK;
    auto take = [&](u64 j, float v) {
        if (p.mask.data && p.mask.data[r.mask + j * p.mask.stride[0]] == 0) return;
        switch (p.kind) {
            case SUM: case MEAN: sum += v; count += 1.0f; break;
            case MAX: case ARG_MAX: best = better(best, Pick{order(v), (u32)j}); break;
            case LOG_SUM_EXP: {
                float next = nan_max(largest, v);
                if (next == -INFINITE) break;
                sum = sum * expf(largest - next) + expf(v - next);
                largest = next;
                break;
            }
            default: sum += v * v; break;
        }
    };
    // Two loads are under way at once.
#pragma unroll 1
    for (u64 j = threadIdx.x * W; j < p.n; j += 512 * W) {
        u64 other = j + 256 * W;
        Floats<W> v = load_floats<W>(p.x, r.x + j * p.x.stride[0]), w = {};
        if (other < p.n) w = load_floats<W>(p.x, r.x + other * p.x.stride[0]);
#pragma unroll
        for (int u = 0; u < W; u++) take(j + u, v.x[u]);
        if (other >= p.n) break;
#pragma unroll
        for (int u = 0; u < W; u++) take(other + u, w.x[u]);
    }
    if (p.kind == MAX || p.kind == ARG_MAX) {
        best = block_pick(best, picks);
        if (threadIdx.x != 0) return;
        bool empty = best.index == NO_PICK.index;
        if (p.kind == ARG_MAX) ((int*)p.out.data)[r.out] = empty ? -1 : (int)best.index;
        else store(p.out, r.out, empty ? -INFINITE : load_float(p.x, r.x + (i64)best.index * p.x.stride[0]));
        return;
    }
    if (p.kind == LOG_SUM_EXP) {
        float most = block_max(largest, shared);
        if (largest != most) sum = largest == -INFINITE ? 0.0f : sum * expf(largest - most);
        sum = block_sum(sum, shared);
        // An infinite or NaN maximum is the answer itself.
        if (threadIdx.x == 0) store(p.out, r.out, fabsf(most) < INFINITE ? most + logf(sum) : most);
        return;
    }
    sum = block_sum(sum, shared);
    if (p.kind == MEAN) {
        count = block_sum(count, shared);
        sum = count > 0.0f ? sum / count : 0.0f;
    }
    if (p.kind != L2_NORMALIZE) {
        if (threadIdx.x == 0) store(p.out, r.out, sum);
        return;
    }
    float length = sqrtf(sum), divisor = length < p.eps ? p.eps : length; // NaN stays
#pragma unroll 2
    for (u64 j = threadIdx.x * W; j < p.n; j += 256 * W) {
        Floats<W> v = load_floats<W>(p.x, r.x + j * p.x.stride[0]);
#pragma unroll
        for (int u = 0; u < W; u++) v.x[u] /= divisor;
        store_floats<W>(p.out, r.out + j * p.out.stride[0], v);
    }
}

KERNEL void __launch_bounds__(256) reduce(const __grid_constant__ Args p) {
    Coordinates row = coordinates(blockIdx.x, p.extent);
    Row r = {row.in(p.x), row.in(p.out), row.in(p.mask)};
    if (p.fours && in_fours(p.x) && (p.kind != L2_NORMALIZE || in_fours(p.out))) reduce_row<4>(p, r);
    else reduce_row<1>(p, r);
}
