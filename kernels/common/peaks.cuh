// The parameters of the kernels that measure a device's limits.
#pragma once
#include "types.cuh"

struct alignas(16) U4 {
    u32 x, y, z, w;
};

struct Args {
    const U4* data; // what `read` reads
    u64 count;      // of it
    u64 steps;
    u32* sink; // never written: the numbers are not what it waits for
};
