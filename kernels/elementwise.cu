// One thread per element of `out`. Strides are along `out`'s dimensions, 0 where an operand repeats.
#include "types.cuh"
#include "activation.cuh"

struct Args {
    Tensor a, out, b;
    u64 extent[6]; // innermost first
    u64 elements;
    u32 function;
    float alpha, beta;
};

DEV float apply(u32 function, float a, float b, float alpha, float beta) {
    switch (function) {
        case 0: return a + b;
        case 1: return a * b;
        case 2: return a + alpha * b;
        case 3: return silu(a) * b;
        case 4: return gelu_tanh(a) * b;
        case 5: return gelu_erf(a) * b;
        case 6: return silu(a);
        case 7: return gelu_tanh(a);
        case 8: return gelu_erf(a);
        case 9: return relu(a);
        case 10: return softplus(a);
        case 11: return sigmoid(a);
        case 12: return tanhf(a);
        case 13: return alpha * tanhf(a / alpha);
        case 14: return is_nan(a) ? a : fminf(fmaxf(a, alpha), beta);
        case 15: return alpha * a + beta;
        default: return expf(a);
    }
}

KERNEL void __launch_bounds__(256) elementwise(const __grid_constant__ Args p) {
    u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= p.elements) return;
    i64 a = 0, b = 0, out = 0;
#pragma unroll
    for (int d = 0; d < 6; d++) {
        i64 at = (i64)(i % p.extent[d]);
        i /= p.extent[d];
        a += at * p.a.stride[d];
        b += at * p.b.stride[d];
        out += at * p.out.stride[d];
    }
    float y = p.b.data ? load_float(p.b, b) : 0.0f;
    store(p.out, out, apply(p.function, load_float(p.a, a), y, p.alpha, p.beta));
}
