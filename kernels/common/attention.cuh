// Which rows of q belong together with which keys, for the padded, the varlen and the paged form.
#pragma once

struct AttentionArgs {
    Tensor q, k, v, out, mask, alibi, sinks, lse, q_len, kv_len, q_offsets, kv_offsets, block_table, key_mask;
    u64 q_rows, heads, group, batch, capacity, d, dv; // q_rows: of a sequence, or of all of them (varlen)
    u64 page, pages;
    i64 window; // 0 is off
    u32 causal;
    float scale, softcap;
};

// A query row: offsets of its elements, its position, and the keys start .. end that it may see.
struct Row {
    i64 q, out, mask, lse, position, start, end;
    i64 batch, first; // the sequence and the first row of its keys
    bool absent;      // in no sequence, or beyond its length
};

DEV i64 clamped(i64 v, i64 low, i64 high) {
    return v < low ? low : v > high ? high : v;
}

// Row `i` of sequence `b`; varlen: row `i` of all. `padded`: of no other form.
template <bool padded = false> DEV Row row_of(const AttentionArgs& p, u64 i, u64 b) {
    Row r = {};
    i64 index = i, q_len = p.q_rows, kv_len = p.capacity;
    r.batch = b;
    if (!padded && p.q_offsets.data) {
        r.q = i * p.q.stride[2];
        r.out = i * p.out.stride[2];
        r.lse = i * p.lse.stride[0];
        r.absent = true;
        i64 low = 0, key = 0;
#pragma unroll 1
        for (u64 s = 0; s <= p.batch; s++) {
            i64 high = clamped(load_index(p.q_offsets, s * p.q_offsets.stride[0]), low, p.q_rows);
            i64 next = p.kv_offsets.data ? clamped(load_index(p.kv_offsets, s * p.kv_offsets.stride[0]), key, p.capacity) : 0;
            if (s > 0 && (i64)i >= low && (i64)i < high) {
                r.absent = false;
                r.batch = s - 1;
                index = i - low;
                q_len = high - low;
                if (p.kv_offsets.data) {
                    r.first = key;
                    kv_len = next - key;
                }
                break;
            }
            low = high;
            key = next;
        }
    } else {
        r.q = b * p.q.stride[3] + i * p.q.stride[2];
        r.out = b * p.out.stride[3] + i * p.out.stride[2];
        r.mask = b * p.mask.stride[3] + i * p.mask.stride[1];
        r.lse = b * p.lse.stride[2] + i * p.lse.stride[0];
        if (p.q_len.data) q_len = clamped(load_index(p.q_len, b * p.q_len.stride[0]), 0, p.q_rows);
        r.absent = index >= q_len;
    }
    if (p.kv_len.data && !r.absent) kv_len = clamped(load_index(p.kv_len, r.batch * p.kv_len.stride[0]), 0, p.capacity);
    r.position = kv_len - q_len + index;
    r.start = 0;
    r.end = r.absent ? 0 : kv_len;
    if (p.causal && r.end > r.position + 1) r.end = r.position + 1;
    if (p.window > 0) {
        r.start = clamped(r.position - p.window + 1, 0, kv_len);
        if (r.end > r.position + p.window) r.end = r.position + p.window;
    }
    return r;
}

// Offsets of key `j` and its value, heads apart; false where it is hidden.
DEV bool key_at(const AttentionArgs& p, const Row& r, i64 j, i64* k, i64* v) {
    if (p.key_mask.data && p.key_mask.data[r.batch * p.key_mask.stride[1] + j * p.key_mask.stride[0]] == 0) return false;
    i64 outer = p.kv_offsets.data ? 0 : r.batch, row = r.first + j;
    if (p.block_table.data) {
        outer = load_index(p.block_table, r.batch * p.block_table.stride[1] + (u32)j / (u32)p.page * p.block_table.stride[0]);
        if (outer < 0 || outer >= (i64)p.pages) return false;
        row = (u32)j % (u32)p.page;
    }
    *k = outer * p.k.stride[3] + row * p.k.stride[2];
    *v = outer * p.v.stride[3] + row * p.v.stride[2];
    return true;
}

// e^x within a few units of 2^-23 times |x|.
DEV float exponential(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
    return y;
}
// tanh within a few units of 2^-24, absolutely.
DEV float squashed(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(exponential(2.0f * x) + 1.0f));
    return 1.0f - 2.0f * y;
}
