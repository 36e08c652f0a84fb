// Sums and softmax over segments of rows, without atomics: reproducible. A block has 256 columns of a segment (`segment_sum`), or of
// a row (`segment_softmax`), where the first row of a segment computes for all of its rows and the others stop. Threads look
// through the segments' names 256 at a time and share what they find as bits. Traffic: x once (softmax: three times, from cache), the names
// once per block (from cache). Measured on an H200: 65536 rows of 64 into 4096, 1.0 ms.
#include "types.cuh"
#include "block.cuh"

struct Args {
    Tensor x, segments, out;
    u64 rows, d, count, parts; // parts: blocks of 256 columns
};

// Row i's segment, or -1.
DEV i64 named(const Args& p, u64 i) {
    i64 s = load_index(p.segments, i * p.segments.stride[0]);
    return s >= 0 && (u64)s < p.count ? s : -1;
}

// Calls `visit(i)` for the rows i from `first` on that are of `segment`, in order, in every thread.
template <class Visit>
DEV void each_row(const Args& p, i64 segment, u64 first, u32* shared, Visit visit) {
#pragma unroll 1
    for (u64 i = first; i < p.rows; i += 256) {
        u64 mine = i + threadIdx.x;
        u32 found = __ballot_sync(0xffffffffu, mine < p.rows && named(p, mine) == segment);
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = found;
        __syncthreads();
#pragma unroll 1
        for (u32 w = 0; w < 8; w++) {
            for (u32 bits = shared[w]; bits != 0; bits &= bits - 1) visit(i + w * 32 + __popc((bits & (0u - bits)) - 1));
        }
        __syncthreads();
    }
}

KERNEL void __launch_bounds__(256) segment_sum(const __grid_constant__ Args p) {
    __shared__ u32 shared[8];
    u64 segment = blockIdx.x / (u32)p.parts, j = blockIdx.x % (u32)p.parts * 256 + threadIdx.x;
    float sum = 0.0f;
    each_row(p, segment, 0, shared, [&](u64 i) {
        if (j < p.d) sum += load_float(p.x, i * p.x.stride[1] + j * p.x.stride[0]);
    });
    if (j < p.d) store(p.out, segment * p.out.stride[1] + j * p.out.stride[0], sum);
}

KERNEL void __launch_bounds__(256) segment_softmax(const __grid_constant__ Args p) {
    __shared__ u32 shared[8];
    u64 row = blockIdx.x / (u32)p.parts, j = blockIdx.x % (u32)p.parts * 256 + threadIdx.x;
    i64 segment = named(p, row), column = j * p.x.stride[0], out = j * p.out.stride[0];
    if (segment < 0) {
        if (j < p.d) store(p.out, row * p.out.stride[1] + out, 0.0f);
        return;
    }
    bool earlier = false;
#pragma unroll 1
    for (u64 i = 0; i < row && !earlier; i += 256) {
        u64 mine = i + threadIdx.x;
        earlier = block_any(mine < row && named(p, mine) == segment, shared);
    }
    if (earlier) return;
    float largest = -INFINITE, sum = 0.0f;
    each_row(p, segment, row, shared, [&](u64 i) {
        if (j >= p.d) return;
        float v = load_float(p.x, i * p.x.stride[1] + column), next = nan_max(largest, v);
        if (next == -INFINITE) return;
        sum = sum * expf(largest - next) + expf(v - next);
        largest = next;
    });
    bool hidden = largest == -INFINITE, spoiled = !(largest < INFINITE);
    each_row(p, segment, row, shared, [&](u64 i) {
        if (j >= p.d) return;
        float y = expf(load_float(p.x, i * p.x.stride[1] + column) - largest) / sum;
        store(p.out, i * p.out.stride[1] + out, spoiled ? NOT_A_NUMBER : hidden ? 0.0f : y);
    });
}
