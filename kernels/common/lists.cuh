// Which of many rows name a target, in their order, for every target at once. Where there are many, one launch clears counts, a second writes each row's number
// to its target's list with an atomic count, and a third has a block of 256 threads per target, which sorts the list. Where there are few, or where a list
// is longer than its room, the block looks through all names.
#pragma once
#include "sort.cuh"

struct Lists {
    u32* counts; // of each target: how many rows; behind all, `room` rows of each
    u64 n, targets, room; // no room: no counts either
};
#define ROOM 2048 // of a block
struct List {
    u32 items[ROOM]; // complements of rows
    u64 warps[8];
};

// The target that row i names, or -1.
DEV i64 named(const Tensor& names, const Lists& l, u64 i) {
    i64 at = load_index(names, i * names.stride[0]);
    return at >= 0 && (u64)at < l.targets ? at : -1;
}

// A thread per target.
DEV void clear(const Lists& l) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < l.targets) l.counts[i] = 0;
}

// A thread per row: its target.
DEV i64 enlist(const Tensor& names, const Lists& l, u64 i) {
    i64 target = named(names, l, i);
    if (target < 0) return -1;
    u32 place = atomicAdd(l.counts + target, 1);
    if (place < l.room) l.counts[l.targets + target * l.room + place] = ~(u32)i;
    return target;
}

// How many rows name a target, which is unknown where there is no room; they are in `s` where they have room.
DEV u32 list_of(const Lists& l, u64 target, List& s) {
    if (l.room == 0) return ~0u;
    u32 total = l.counts[target];
    if (total == 0 || total > l.room) return total;
    const u32* slots = l.counts + l.targets + target * l.room;
    for (u32 i = threadIdx.x; i < total; i += THREADS) s.items[i] = slots[i];
    if (total <= THREADS) {
        __syncthreads();
        sort_few(s.items, total);
    } else sort(s.items, total);
    return total;
}

// Calls `visit(count)` with complements of a target's rows in `s.items`, in order, in every thread.
template <class Visit> DEV void each_list(const Tensor& names, const Lists& l, i64 target, u32 total, List& s, Visit visit) {
    bool listed = total <= l.room;
    u64 first = 0;
#pragma unroll 1
    do {
        u32 held = listed ? total : 0;
#pragma unroll 1
        for (; !listed && first < l.n && held + THREADS * 4 <= ROOM; first += THREADS * 4) {
            u64 mine = first + threadIdx.x * 4, found;
            u32 bits = 0;
#pragma unroll
            for (u32 u = 0; u < 4; u++) bits |= mine + u < l.n && named(names, l, mine + u) == target ? 1u << u : 0;
            u32 at = held + (u32)sum_before(__popc(bits), found, s.warps);
#pragma unroll
            for (u32 u = 0; u < 4; u++) {
                if (bits >> u & 1) s.items[at++] = ~(u32)(mine + u);
            }
            held += (u32)found;
        }
        __syncthreads();
        visit(held);
    } while (!listed && first < l.n);
}

// How a block's threads share a list and `width` columns of its rows: `lanes` threads have four columns each, `groups` of them every groups-th row.
struct Sharing {
    u32 lanes, lane, groups, group;
};
DEV Sharing sharing_of(u32 width) {
    u32 lanes = width / 4;
    return {lanes, threadIdx.x % lanes, THREADS / lanes, threadIdx.x / lanes};
}
// Calls `visit(u64 row, Floats<4>)` for four columns, from the j-th of `d` on, of this thread's rows of a list of `count`; four rows are on their way at once.
template <class Visit> DEV void each_row(const Tensor& x, const List& s, u32 count, const Sharing& t, u64 j, u64 d, bool whole, Visit visit) {
    whole = whole && j + 4 <= d;
#pragma unroll 1
    for (u32 c = t.group; c < count; c += 4 * t.groups) {
        Floats<4> v[4];
        if (whole) {
            Bits raw[4];
#pragma unroll
            for (u32 u = 0; u < 4; u++) {
                u32 at = c + u * t.groups;
                raw[u] = bits_of(x, (i64)(u32)~s.items[at < count ? at : c] * x.stride[1] + j);
            }
#pragma unroll
            for (u32 u = 0; u < 4; u++) v[u] = decode(x, raw[u]);
        } else {
#pragma unroll
            for (u32 u = 0; u < 4; u++) {
                u32 at = c + u * t.groups;
                v[u] = four_of(x, (u32)~s.items[at < count ? at : c], j, d, false);
            }
        }
#pragma unroll
        for (u32 u = 0; u < 4; u++) {
            u32 at = c + u * t.groups;
            if (at < count) visit((u64)(u32)~s.items[at], v[u]);
        }
    }
}
// What the groups have put together, half of them with the other half, in every group.
template <class Join> DEV Floats<4> together(const Floats<4>& mine, const Sharing& t, Floats<4>* shared, Join join) {
    if (t.groups == 1) return mine;
    __syncthreads();
    shared[threadIdx.x] = mine;
#pragma unroll 1
    for (u32 half = t.groups / 2; half > 0; half /= 2) {
        __syncthreads();
        if (t.group >= half) continue;
        Floats<4> other = shared[threadIdx.x + half * t.lanes];
#pragma unroll
        for (u32 u = 0; u < 4; u++) other.x[u] = join(shared[threadIdx.x].x[u], other.x[u]);
        shared[threadIdx.x] = other;
    }
    __syncthreads();
    return shared[t.lane];
}
DEV float add(float a, float b) {
    return a + b;
}
