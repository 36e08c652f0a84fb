// out[index[i]] += weight[i] * x[i], without atomic sums: reproducible. A block for each part of a row of out finds the rows that name it (lists.cuh) and adds
// them, four columns of a thread, several rows at once where a part has few columns; the threads' sums are put together in a fixed order.
// Traffic: x and the indices once, the touched rows of out twice. Floor: 4096 rows of 1024 f32 into 512 are 21 MB, 5 us.
// Predicted for an H200: 8 us. Measured there: 12 us (with lists; 14 when all names are looked through); 32768 rows of 2048 bf16 into 4096 106 us, 1.4 TB/s; 4096
// rows of 1024 into one 43 us. Before, each thread read all indices: 1.7 ms.
#include "lists.cuh"

struct Args {
    Tensor x, index, out, weight;
    Lists lists;
    u64 d, parts; // parts: of a row, `width` columns each
    u32 width;
};

KERNEL void __launch_bounds__(256) scatter_clear(const __grid_constant__ Args p) {
    clear(p.lists);
}

KERNEL void __launch_bounds__(256) scatter_lists(const __grid_constant__ Args p) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i < p.lists.n) enlist(p.index, p.lists, i);
}

KERNEL void __launch_bounds__(256, 3) scatter(const __grid_constant__ Args p) {
    __shared__ List s;
    __shared__ Floats<4> shared[THREADS];
    u64 row = blockIdx.x / (u32)p.parts;
    Sharing t = sharing_of(p.width);
    u64 j = blockIdx.x % (u32)p.parts * p.width + t.lane * 4;
    u32 total = list_of(p.lists, row, s), terms = 0;
    if (total == 0) return;
    bool whole = whole_fours(p.x), whole_out = whole_fours(p.out);
    Floats<4> sum = {};
    each_list(p.index, p.lists, row, total, s, [&](u32 count) {
        terms += count;
        each_row(p.x, s, count, t, j, p.d, whole, [&](u64 i, const Floats<4>& v) {
            float by = p.weight.data ? ((const float*)p.weight.data)[i * p.weight.stride[0]] : 1.0f;
#pragma unroll
            for (u32 u = 0; u < 4; u++) sum.x[u] += by * v.x[u];
        });
    });
    sum = together(sum, t, shared, add);
    if (t.group != 0 || terms == 0 || j >= p.d) return;
    Floats<4> held = four_of(p.out, row, j, p.d, whole_out);
#pragma unroll
    for (u32 u = 0; u < 4; u++) held.x[u] += sum.x[u];
    store_four(p.out, row, j, p.d, whole_out, held);
}
