// What blocks of 256 threads do with many numbers: add up what lies before, sort.
#pragma once
#include "rows.cuh"

#define THREADS 256

// The sum of what the threads before this one have; `all`: of all threads.
DEV u64 sum_before(u64 mine, u64& all, u64* warps) {
    u64 sum = mine;
#pragma unroll
    for (u32 step = 1; step < 32; step *= 2) {
        u32 low = __shfl_up_sync(0xffffffffu, (u32)sum, step), high = __shfl_up_sync(0xffffffffu, (u32)(sum >> 32), step);
        if (threadIdx.x % 32 >= step) sum += (u64)high << 32 | low;
    }
    __syncthreads(); // what was there is read
    if (threadIdx.x % 32 == 31) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    all = 0;
#pragma unroll
    for (u32 w = 0; w < 8; w++) {
        if (w == threadIdx.x / 32) sum += all;
        all += warps[w];
    }
    return sum - mine;
}

// Sorts `count` keys, largest first; beyond them are zeros up to a power of two.
template <class Key> DEV void sort(Key* keys, u32 count) {
    u32 size = 1;
    while (size < count) size *= 2;
    for (u32 i = count + threadIdx.x; i < size; i += THREADS) keys[i] = 0;
    __syncthreads();
#pragma unroll 1
    for (u32 run = 2; run <= size; run *= 2) {
#pragma unroll 1
        for (u32 step = run / 2; step > 0; step /= 2) {
#pragma unroll 1
            for (u32 i = threadIdx.x; i < size / 2; i += THREADS) {
                u32 a = 2 * i - (i & (step - 1)), b = a + step;
                Key x = keys[a], y = keys[b];
                if ((x < y) == ((a & run) == 0)) {
                    keys[a] = y;
                    keys[b] = x;
                }
            }
            __syncthreads();
        }
    }
}

// As `sort`, of up to 256 keys, no two of which are equal: each finds its place by counting.
template <class Key> DEV void sort_few(Key* keys, u32 count) {
    Key mine = threadIdx.x < count ? keys[threadIdx.x] : 0;
    u32 place = 0;
    if (threadIdx.x < count) {
#pragma unroll 8
        for (u32 i = 0; i < count; i++) place += keys[i] > mine;
    }
    __syncthreads();
    if (threadIdx.x < count) keys[place] = mine;
    __syncthreads();
}
