// Convolution in one to three dimensions, one thread per element of `out`: neighbouring threads are neighbouring positions, so
// that x is read by lines and w by broadcast. Traffic: x and w from cache, out once. Run in the PTX interpreter and assembled; not
// measured on a GPU.
#include "types.cuh"
#include "activation.cuh"

struct Args {
    Tensor x, w, out, bias; // strides: three of space, channels, batch
    u64 in[3], taps[3], positions[3];
    u64 cout, per_group, group, elements; // per_group: input channels, group: output channels of a group
    u64 stride, dilation, pad[3];
    u32 act;
};

KERNEL void __launch_bounds__(256, 4) conv(const __grid_constant__ Args p) {
    u32 e = blockIdx.x * 256 + threadIdx.x; // fewer than 2^32
    if (e >= p.elements) return;
    i64 at[3], out = 0;
#pragma unroll
    for (int d = 0; d < 3; d++) {
        at[d] = e % (u32)p.positions[d];
        e /= (u32)p.positions[d];
        out += at[d] * p.out.stride[d];
        at[d] = at[d] * (i64)p.stride - (i64)p.pad[d];
    }
    u64 o = e % (u32)p.cout, b = e / (u32)p.cout;
    out += o * p.out.stride[3] + b * p.out.stride[4];
    i64 x = b * p.x.stride[4] + (u32)o / (u32)p.group * p.per_group * p.x.stride[3], w = o * p.w.stride[4];
    float sum = 0.0f;
#pragma unroll 1
    for (u64 i = 0; i < p.per_group; i++) {
#pragma unroll 1
        for (u64 t2 = 0; t2 < p.taps[2]; t2++) {
            i64 x2 = at[2] + (i64)(t2 * p.dilation);
            if (x2 < 0 || x2 >= (i64)p.in[2]) continue;
#pragma unroll 1
            for (u64 t1 = 0; t1 < p.taps[1]; t1++) {
                i64 x1 = at[1] + (i64)(t1 * p.dilation);
                if (x1 < 0 || x1 >= (i64)p.in[1]) continue;
                i64 from = x + i * p.x.stride[3] + x2 * p.x.stride[2] + x1 * p.x.stride[1];
                i64 tap = w + i * p.w.stride[3] + t2 * p.w.stride[2] + t1 * p.w.stride[1];
#pragma unroll 1
                for (u64 t0 = 0; t0 < p.taps[0]; t0++) {
                    i64 x0 = at[0] + (i64)(t0 * p.dilation);
                    if (x0 < 0 || x0 >= (i64)p.in[0]) continue;
                    sum += load_float(p.x, from + x0 * p.x.stride[0]) * load_float(p.w, tap + t0 * p.w.stride[0]);
                }
            }
        }
    }
    if (p.bias.data) sum += load_float(p.bias, o * p.bias.stride[0]);
    store(p.out, out, activate(p.act, sum));
}
