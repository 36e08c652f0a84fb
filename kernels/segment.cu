// Sums and softmax over segments of rows, without atomic sums: reproducible. A block for each part of a segment finds its rows (lists.cuh), four columns of
// a thread, several rows at once where a part has few columns.
// Traffic: x once (softmax: twice, from cache). Floor: 65536 rows of 64 f32 into 4096 are 18 MB, 4 us, and three launches of 2 us. Predicted for an H200: 15 us.
// Measured there: 29 us, softmax 63 us; a million rows of 128 into 1000 249 us, 2.1 TB/s. A block's loads of count, list and rows follow one after the other.
// Before, each block looked through all names: 1.0 ms.
#include "lists.cuh"
#include "block.cuh"

struct Args {
    Tensor x, segments, out;
    Lists lists;
    u64 d, parts; // parts: of a row, `width` columns each
    u32 width, softmax;
};

KERNEL void __launch_bounds__(256) segment_clear(const __grid_constant__ Args p) {
    clear(p.lists);
}

KERNEL void __launch_bounds__(256) segment_lists(const __grid_constant__ Args p) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= p.lists.n || (p.lists.room > 0 ? enlist(p.segments, p.lists, i) : named(p.segments, p.lists, i)) >= 0 || !p.softmax) return;
    for (u64 j = 0; j < p.d; j++) store(p.out, i * p.out.stride[1] + j * p.out.stride[0], 0.0f);
}

KERNEL void __launch_bounds__(256, 3) segment_sum(const __grid_constant__ Args p) {
    __shared__ List s;
    __shared__ Floats<4> shared[THREADS];
    u64 segment = blockIdx.x / (u32)p.parts;
    Sharing t = sharing_of(p.width);
    u64 j = blockIdx.x % (u32)p.parts * p.width + t.lane * 4;
    u32 total = list_of(p.lists, segment, s);
    bool whole = whole_fours(p.x);
    Floats<4> sum = {};
    each_list(p.segments, p.lists, segment, total, s, [&](u32 count) {
        each_row(p.x, s, count, t, j, p.d, whole, [&](u64, const Floats<4>& v) {
#pragma unroll
            for (u32 u = 0; u < 4; u++) sum.x[u] += v.x[u];
        });
    });
    sum = together(sum, t, shared, add);
    if (t.group == 0) store_four(p.out, segment, j, p.d, whole_fours(p.out), sum);
}

KERNEL void __launch_bounds__(256, 3) segment_softmax(const __grid_constant__ Args p) {
    __shared__ List s;
    __shared__ Floats<4> shared[THREADS];
    u64 segment = blockIdx.x / (u32)p.parts;
    Sharing t = sharing_of(p.width);
    u64 j = blockIdx.x % (u32)p.parts * p.width + t.lane * 4;
    u32 total = list_of(p.lists, segment, s);
    if (total == 0) return;
    bool whole = whole_fours(p.x), whole_out = whole_fours(p.out);
    Floats<4> largest = {-INFINITE, -INFINITE, -INFINITE, -INFINITE}, sum = {};
    each_list(p.segments, p.lists, segment, total, s, [&](u32 count) {
        each_row(p.x, s, count, t, j, p.d, whole, [&](u64, const Floats<4>& v) {
#pragma unroll
            for (u32 u = 0; u < 4; u++) {
                float next = nan_max(largest.x[u], v.x[u]);
                if (next == -INFINITE) continue;
                sum.x[u] = sum.x[u] * expf(largest.x[u] - next) + expf(v.x[u] - next);
                largest.x[u] = next;
            }
        });
    });
    Floats<4> most = together(largest, t, shared, nan_max);
#pragma unroll
    for (u32 u = 0; u < 4; u++) sum.x[u] = largest.x[u] == -INFINITE ? 0.0f : sum.x[u] * expf(largest.x[u] - most.x[u]);
    sum = together(sum, t, shared, add);
    each_list(p.segments, p.lists, segment, total, s, [&](u32 count) {
        each_row(p.x, s, count, t, j, p.d, whole, [&](u64 i, const Floats<4>& v) {
            Floats<4> y;
#pragma unroll
            for (u32 u = 0; u < 4; u++) {
                y.x[u] = expf(v.x[u] - most.x[u]) / sum.x[u];
                y.x[u] = !(most.x[u] < INFINITE) ? NOT_A_NUMBER : most.x[u] == -INFINITE ? 0.0f : y.x[u];
            }
            store_four(p.out, i, j, p.d, whole_out, y);
        });
    });
}
