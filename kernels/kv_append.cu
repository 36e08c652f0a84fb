// cache[slots[t]] = x[t], unless a later token names the same slot. A block per token and 2048 elements of its row; where the
// cache is of blocks of 32 a thread makes one. Traffic: x once, as much of the cache as is written, the slots (from cache).
// Measured on an H200: 512 x 8 x 128 f32 into f16 5.0 us, into q8_0 12.8.
#include "types.cuh"
#include "block.cuh"
#include "cache.cuh"
#include "encode.cuh"

struct Args {
    CacheArgs to;
    Tensor x;
    u64 width, d, parts; // elements of a row; blocks per token
    u32 bytes;           // of a quantized block
};

KERNEL void __launch_bounds__(256) kv_append(const __grid_constant__ Args p) {
    __shared__ u32 shared[8];
    u64 token = blockIdx.x / (u32)p.parts, first = blockIdx.x % (u32)p.parts * 2048;
    i64 slot = kept_slot(p.to, token, shared);
    if (slot < 0) return;
    i64 row = cache_row(p.to, slot), x = token * p.x.stride[2];
    u64 end = first + 2048 < p.width ? first + 2048 : p.width;
    if (p.to.cache.type < Q4_0) {
#pragma unroll 1
        for (u64 e = first + threadIdx.x; e < end; e += 256) {
            u64 head = (u32)e / (u32)p.d, j = (u32)e % (u32)p.d;
            float v = load_float(p.x, x + head * p.x.stride[1] + j * p.x.stride[0]);
            store_plain(p.to.cache, row + head * p.to.cache.stride[1] + j * p.to.cache.stride[0], v);
        }
        return;
    }
    u64 e = first + threadIdx.x * 32;
    if (e >= end) return;
    u64 head = (u32)e / (u32)p.d, j = (u32)e % (u32)p.d;
    float values[32];
#pragma unroll
    for (int n = 0; n < 32; n++) {
        values[n] = load_float(p.x, x + head * p.x.stride[1] + (j + n) * p.x.stride[0]);
    }
    encode_block(p.to.cache.type, p.to.cache.data + (row + head * p.to.cache.stride[1] + j) / 32 * p.bytes, values);
}
