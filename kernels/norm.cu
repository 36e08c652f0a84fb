// One block per row. What is normalized is computed anew in each pass, so that its rounding to `sum`'s dtype does not enter
// the result, and `sum` and `out` may lie on top of the inputs: each element is read and written by one thread, in the last
// pass only.
#include "types.cuh"
#include "activation.cuh"
#include "block.cuh"

struct Args {
    Tensor x, out, weight, bias, residual, gate, sum;
    u64 extent[6]; // of the rows, innermost first
    u64 n;
    u32 layer;
    float eps, factor;
};

struct Row {
    i64 x, out, residual, gate, sum;
};

DEV float element(const Args& p, const Row& r, u64 j) {
    float s = load_float(p.x, r.x + j * p.x.stride[0]);
    return p.residual.data ? load_float(p.residual, r.residual + j * p.residual.stride[0]) + p.factor * s : s;
}

DEV float gated(const Args& p, const Row& r, u64 j, float s) {
    return p.gate.data ? s * silu(load_float(p.gate, r.gate + j * p.gate.stride[0])) : s;
}

KERNEL void __launch_bounds__(256) norm(const __grid_constant__ Args p) {
    __shared__ float shared[8];
    Row r = {0, 0, 0, 0, 0};
    u64 row = blockIdx.x;
#pragma unroll
    for (int d = 0; d < 5; d++) {
        i64 at = (i64)(row % p.extent[d]);
        row /= p.extent[d];
        r.x += at * p.x.stride[d + 1];
        r.out += at * p.out.stride[d + 1];
        r.residual += at * p.residual.stride[d + 1];
        r.gate += at * p.gate.stride[d + 1];
        r.sum += at * p.sum.stride[d + 1];
    }
    float mean = 0.0f;
    if (p.layer) {
        float sum = 0.0f;
#pragma unroll 1
        for (u64 j = threadIdx.x; j < p.n; j += 256) sum += gated(p, r, j, element(p, r, j));
        mean = block_sum(sum, shared) / (float)p.n;
    }
    float squares = 0.0f;
#pragma unroll 1
    for (u64 j = threadIdx.x; j < p.n; j += 256) {
        float s = gated(p, r, j, element(p, r, j)) - mean;
        squares += s * s;
    }
    float deviation = sqrtf(block_sum(squares, shared) / (float)p.n + p.eps);
#pragma unroll 1
    for (u64 j = threadIdx.x; j < p.n; j += 256) {
        float s = element(p, r, j);
        float y = (gated(p, r, j, s) - mean) / deviation;
        if (p.weight.data) y *= load_float(p.weight, j * p.weight.stride[0]);
        if (p.bias.data) y += load_float(p.bias, j * p.bias.stride[0]);
        if (p.sum.data) store(p.sum, r.sum + j * p.sum.stride[0], s);
        store(p.out, r.out + j * p.out.stride[0], y);
    }
}
