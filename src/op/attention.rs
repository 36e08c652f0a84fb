//! Scaled dot-product attention over contiguous, paged and quantized caches.
//!
//! `out[b, i, h] = sum_j softmax_j(s[b, h, i, j]) v[b, j, h / group]` with `group = heads / kv_heads` and
//! `s = scale * q.k`, then `softcap * tanh(s / softcap)` where softcap is not 0, then plus
//! `alibi[h] * (j - p)` where p is the query's position, then plus `mask`; hidden keys count as -inf.
//!
//! **Shapes.** Three forms, told apart by rank and operands:
//! - padded: `q [batch, q_len, heads, d]`, `k [batch, capacity, kv_heads, d]`, `v [.., dv]`, `out [batch, q_len, heads, dv]`;
//! - varlen (`q_offsets` and `kv_offsets` present): `q [total_q, heads, d]`, `k [total_kv, kv_heads, d]`, sequence `b` being rows
//!   `offsets[b] .. offsets[b + 1]` (i32 `[batch + 1]`, clamped like `grouped_matmul`'s); rows in no sequence are zero;
//! - paged (`block_table` present): `k [pages, page, kv_heads, d]`, and key `j` of sequence `b` lies in page
//!   `block_table[b, j / page]` (i32 `[batch, max_pages]`) at row `j % page`. An entry outside `0 .. pages` hides its keys.
//!   `q` as in either form; the capacity is `max_pages * page`.
//!
//! **Lengths.** `kv_len` (i32 `[batch]`, read at run time, clamped to `0 ..= capacity`) says how many keys are valid;
//! absent: all. `q_len` (i32 `[batch]`, clamped) says how many query rows are; rows beyond are zero. The last
//! valid query row stands at position `kv_len - 1`: row `i` at `p = kv_len - q_len + i`. A plan made for a capacity serves
//! every length.
//!
//! **Who sees whom.** `causal`: key `j` is visible where `j <= p`. `window > 0`: also `p - j < window`, and without `causal`
//! `|p - j| < window`. `key_mask` (u8 `[batch, capacity]`; 0 hides). `mask` is added (float, `[batch or 1, heads or 1, q_len,
//! capacity]`, padded form only; -inf hides, and NaN propagates).
//! `sinks` (f32 `[heads]`) adds one more logit per head with no value: it takes part in the maximum and the sum only.
//!
//! **Corners.** A row that sees no key is zero, with or without sinks, and its `lse` is -inf (with a sink: the sink).
//! A visible score of +inf or NaN gives NaN in that row alone; a visible -inf has weight 0. `lse` (f32 `[batch, heads, q_len]`, varlen
//! `[heads, total_q]`) is the natural log of the sum of exponentials, sink included.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out = softmax(scale * q kᵀ + masks) v` per head: see the [module](self).
    Attention = "attention";
    operands {
        /// `[batch, q_len, heads, d]` or `[total_q, heads, d]`
        q: In,
        /// `[batch, capacity, kv_heads, d]`, `[total_kv, kv_heads, d]` or `[pages, page, kv_heads, d]`
        k: In,
        /// As `k`, with its own head dimension.
        v: In,
        /// As `q`, with `v`'s head dimension.
        out: Out,
    }
    optional {
        /// i32 `[batch]`
        q_len: In,
        /// i32 `[batch]`
        kv_len: In,
        /// i32 `[batch + 1]`
        q_offsets: In,
        /// i32 `[batch + 1]`
        kv_offsets: In,
        /// i32 `[batch, max_pages]`
        block_table: In,
        /// float `[batch or 1, heads or 1, q_len, capacity]`
        mask: In,
        /// u8 `[batch, capacity]`
        key_mask: In,
        /// f32 `[heads]`
        alibi: In,
        /// f32 `[heads]`
        sinks: In,
        /// f32 `[batch, heads, q_len]` or `[heads, total_q]`
        lse: Out,
    }
    fields {
        /// Multiplies the scores; 0 stands for `1 / sqrt(d)`.
        scale: Real = Real::ZERO,
        /// Hides keys after the query's position.
        causal: bool = false,
        /// Hides keys this far away or further; 0 is off.
        window: usize = 0,
        /// Squashes scores; 0 is off.
        softcap: Real = Real::ZERO,
    }
}

super::descriptor::unwritten!(Attention);
