// Hopper's means: barriers in shared memory, copies by tensor maps (TMA), clusters of blocks, products of warpgroups (wgmma). For
// compute capability 9.0 alone.
#pragma once
#include "types.cuh"

// A `CUtensorMap` among the parameters; the host encodes it (`Kernel::map` in src/cuda/kernel.rs): boxes of 64 elements of 16 bits by rows,
// permuted.
struct alignas(64) TensorMap {
    u64 words[16];
};
// The address of a kernel's only parameter, a struct. A struct whose address the compiler sees taken is read by slow generic loads all over:
// 4 us a launch.
#define PARAMETERS(kernel, address) asm("{.reg .b64 at; mov.b64 at, " #kernel "_param_0; cvta.param.u64 %0, at;}" : "=l"(address))

DEV void barrier_init(u32 at, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
// Barriers were made: copies and the other blocks see them, after a barrier of all.
DEV void barriers_made() {
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
}
// Arrives, and has the phase wait for copies of so many bytes.
DEV void barrier_expect(u32 at, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
DEV void barrier_arrive(u32 at) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
// Waits for the end of the phase of this parity: the current one or the one before.
DEV void barrier_wait(u32 at, u32 parity) {
    asm volatile("{.reg .pred done; WAIT: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @done bra DONE; bra WAIT; DONE:}" ::"r"(at),
                 "r"(parity)
                 : "memory");
}

// Registers of each thread of the warpgroup, given back or taken: all threads together must not have more than the block began with, or those
// who take wait forever.
template <int N> DEV void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> DEV void registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
// A barrier of so many of the block's threads.
DEV void named_sync(u32 barrier, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// True in one lane of the warp, which all lanes ask: what it alone does then needs no loop over lanes that might.
DEV bool elected() {
    u32 one;
    asm volatile("{.reg .pred one; .reg .b32 lane; elect.sync lane|one, 0xffffffff; selp.u32 %0, 1, 0, one;}" : "=r"(one));
    return one;
}
// The block's index, read anew: kept from before registers change hands it would be spilled.
DEV u32 block_index() {
    u32 index;
    asm volatile("mov.u32 %0, %ctaid.x;" : "=r"(index));
    return index;
}
// The block's rank in its cluster.
DEV u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %cluster_ctarank;" : "=r"(rank));
    return rank;
}
// All threads of the cluster meet. What they wrote the others need not see: that takes a wait for all of a thread's accesses, 1 us.
DEV void cluster_meet() {
    asm volatile("barrier.cluster.arrive.relaxed; barrier.cluster.wait;" ::: "memory");
}
// The address in the block of this rank.
DEV u32 address_at(u32 at, u32 rank) {
    u32 there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
}

// A box of a tensor to shared memory; the barrier learns of its bytes.
DEV void copy_box(u32 to, u64 map, u32 element, u32 row, u32 outer, u32 outermost, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3,%4,%5}], [%6];" ::"r"(to),
                 "l"(map), "r"(element), "r"(row), "r"(outer), "r"(outermost), "r"(barrier)
                 : "memory");
}
// Bytes of shared memory, a multiple of 16, to another block's (`address_at`), whose barrier learns of them.
DEV void copy_there(u32 to, u32 from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "r"(from), "r"(bytes),
                 "r"(barrier)
                 : "memory");
}
// What the thread wrote to shared memory is seen by copies, after a barrier.
DEV void shared_written() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// A tile whose rows of 128 bytes are k, permuted: 8 rows are 1024 bytes.
DEV u64 descriptor(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | 1ull << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}
// Registers that products write were touched before: products come after.
DEV void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
DEV void products_end() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// All but the last N groups of products are done.
template <int N> DEV void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
