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
//!   `q` as in either form (`q_offsets` alone for varlen); the capacity is `max_pages * page`.
//!
//! **Lengths.** `kv_len` (i32 `[batch]`, read at run time, clamped to `0 ..= capacity`) says how many keys are valid;
//! absent: all. `q_len` (i32 `[batch]`, clamped) says how many query rows are; rows beyond are zero. Offsets say the same of
//! their sequences, so neither stands beside its offsets. The last valid query row stands at position `kv_len - 1`: row
//! `i` at `p = kv_len - q_len + i`, which may be negative. A plan made for a capacity serves every length.
//!
//! **Who sees whom.** `causal`: key `j` is visible where `j <= p`. `window > 0`: also `p - j < window`, and without `causal`
//! `|p - j| < window`. `key_mask` (u8 `[batch, capacity]`; 0 hides; not for varlen keys). `mask` is added (float, `[batch or 1,
//! heads or 1, q_len, capacity]`, padded form only; -inf hides, and NaN propagates).
//! `sinks` (f32 `[heads]`) adds one more logit per head with no value: it takes part in the maximum and the sum only.
//!
//! **Corners.** A row that sees no key is zero, with or without sinks, and its `lse` is -inf (with a sink: the sink).
//! A visible score of +inf or NaN gives NaN in that row alone; a visible -inf has weight 0. Keys beyond `kv_len` or in no page may
//! hold anything, NaN included, in `k` and `v`; elsewhere `v` must be finite, since a weight of 0 does not hide a NaN from
//! every kernel. `lse` (f32 `[batch, heads, q_len]`, varlen `[heads, total_q]`) is the natural log of the sum of
//! exponentials, sink included; -inf for rows in no sequence or beyond `q_len`.
//!
//! **Accuracy.** Under `exact`, scores, weights and sums are f32 whatever the dtypes. `fast` may round the weights to the
//! type of `q`, and quantize `q` and the weights to 8 bits per block.

mod cases;
mod reference;
#[cfg(test)]
mod tests;

use super::{grouped_matmul::fill_offsets, kv_append::CACHE_TYPES, *};
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

/// The sizes of an attention, whatever its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Sequences.
    pub batch: usize,
    /// Query rows: of each sequence when padded, of all together when varlen.
    pub q_len: usize,
    /// Keys a sequence may have: `capacity`, or `total_kv` when varlen.
    pub capacity: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a query's or a key's head.
    pub d: usize,
    /// Elements of a value's head.
    pub dv: usize,
}

impl Attention {
    /// The sizes of a valid operation.
    pub fn sizes(&self) -> Sizes {
        let batch = match (&self.q_offsets, &self.block_table) {
            (Some(offsets), _) => offsets.dim(0).saturating_sub(1),
            (None, _) => self.q.dim(3),
        };
        let capacity = match &self.block_table {
            Some(table) => table.dim(0).saturating_mul(self.k.dim(2)),
            None => self.k.dim(2),
        };
        let (heads, kv_heads) = (self.q.dim(1), self.k.dim(1));
        Sizes { batch, q_len: self.q.dim(2), capacity, heads, kv_heads, d: self.q.dim(0), dv: self.v.dim(0) }
    }

    /// What scores are multiplied by.
    pub fn score_scale(&self) -> f32 {
        if self.scale.is_zero() { 1.0 / (self.q.dim(0).max(1) as f32).sqrt() } else { self.scale.get() }
    }

    /// Keys of a sequence that can be visible to any of its queries, at most.
    fn reach(&self) -> usize {
        let Sizes { q_len, capacity, .. } = self.sizes();
        match self.window {
            0 => capacity,
            w if self.causal => capacity.min(w.saturating_add(q_len)),
            w => capacity.min(w.saturating_mul(2).saturating_add(q_len)),
        }
    }
}

impl Semantics for Attention {
    fn check(&self) -> Result<(), String> {
        use DType::*;
        let (q, k, v) = (&self.q, &self.k, &self.v);
        let (varlen, paged) = (self.q_offsets.is_some(), self.block_table.is_some());
        ensure!(q.rank() == if varlen { 3 } else { 4 }, "q must be rank 4, or rank 3 with q_offsets");
        ensure!(self.kv_offsets.is_some() == (varlen && !paged), "kv_offsets come with q_offsets unless keys are paged");
        ensure!(k.rank() == if self.kv_offsets.is_some() { 3 } else { 4 }, "k must be rank 4, or rank 3 with kv_offsets");
        let Sizes { batch, q_len, capacity, heads, kv_heads, d, dv } = self.sizes();
        ensure!(paged || self.kv_offsets.is_some() || k.dim(3) == batch, "k is for {} sequences, q for {batch}", k.dim(3));
        ensure!(capacity <= i32::MAX as usize && q_len <= i32::MAX as usize, "lengths must fit i32");
        ensure!(k.dim(0) == d, "k has head dimension {}, q {d}", k.dim(0));
        ensure!(v.shape()[..v.rank() - 1] == k.shape()[..k.rank() - 1], "v must be as k but for the head dimension");
        ensure!(
            heads == 0 || (kv_heads > 0 && heads % kv_heads == 0),
            "{heads} heads are not a multiple of {kv_heads} kv heads"
        );
        for (name, s) in [("q", q), ("out", &self.out)] {
            ensure!(s.dtype().is_float(), "{name} is {}, must be f32, f16 or bf16", s.dtype());
        }
        one_of("k", k.dtype(), CACHE_TYPES)?;
        one_of("v", v.dtype(), CACHE_TYPES)?;
        let rows = &q.shape()[..q.rank() - 1];
        ensure!(self.out.shape() == [rows, &[dv]].concat(), "out must be as q, with v's head dimension {dv}");

        let is = |name: &str, s: &Option<Spec>, dtype: DType, shape: &[usize]| match s {
            Some(s) if s.dtype() != dtype || s.shape() != shape => Err(format!("{name} must be {dtype} {shape:?}")),
            _ => Ok(()),
        };
        ensure!(!varlen || self.q_len.is_none(), "q_len and q_offsets exclude each other");
        ensure!(self.kv_offsets.is_none() || self.kv_len.is_none(), "kv_len and kv_offsets exclude each other");
        is("q_len", &self.q_len, I32, &[batch])?;
        is("kv_len", &self.kv_len, I32, &[batch])?;
        is("q_offsets", &self.q_offsets, I32, &[batch + 1])?;
        is("kv_offsets", &self.kv_offsets, I32, &[batch + 1])?;
        if let Some(table) = &self.block_table {
            ensure!(table.rank() == 2 && table.dim(1) == batch && table.dtype() == I32, "block_table must be i32 [{batch}, max_pages]");
        }
        if let Some(m) = &self.mask {
            ensure!(!varlen && !paged, "a mask needs the padded form");
            ensure!(m.dtype().is_float() && m.rank() == 4, "mask must be float [batch or 1, heads or 1, q_len, capacity]");
            ensure!(
                m.dim(0) == capacity && m.dim(1) == q_len && [1, heads].contains(&m.dim(2)) && [1, batch].contains(&m.dim(3)),
                "mask must be [{batch} or 1, {heads} or 1, {q_len}, {capacity}]"
            );
        }
        ensure!(self.kv_offsets.is_none() || self.key_mask.is_none(), "a key_mask needs padded or paged keys");
        is("key_mask", &self.key_mask, U8, &[batch, capacity])?;
        is("alibi", &self.alibi, F32, &[heads])?;
        is("sinks", &self.sinks, F32, &[heads])?;
        let lse: &[usize] = if varlen { &[heads, q_len] } else { &[batch, heads, q_len] };
        is("lse", &self.lse, F32, lse)?;
        ensure!(self.scale.get().is_finite(), "scale must be finite");
        ensure!(self.softcap.get().is_finite() && self.softcap.get() >= 0.0, "softcap must be finite and not negative");
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::BATCH, self.sizes().batch > 1);
        f.set(Features::SCALE, !self.scale.is_zero());
        f.set(Features::CAUSAL, self.causal);
        f.set(Features::WINDOW, self.window > 0);
        f.set(Features::SOFTCAP, !self.softcap.is_zero());
        f.set(Features::ALIBI, self.alibi.is_some());
        f.set(Features::MASK, self.mask.is_some());
        f.set(Features::BROADCAST, self.mask.is_some_and(|m| m.dim(2) < self.q.dim(1) || m.dim(3) < self.q.dim(3)));
        f.set(Features::KEY_MASK, self.key_mask.is_some());
        f.set(Features::SINKS, self.sinks.is_some());
        f.set(Features::LSE, self.lse.is_some());
        f.set(Features::VARLEN, self.q_offsets.is_some());
        f.set(Features::PAGED, self.block_table.is_some());
        f.set(Features::LENGTHS, self.q_len.is_some() || self.kv_len.is_some());
        f
    }

    fn flops(&self) -> u64 {
        let Sizes { batch, q_len, capacity, heads, d, dv, .. } = self.sizes();
        // Varlen sequences count as equally long.
        let share = |n: usize, split: bool| if split { n.div_ceil(batch.max(1)) } else { n } as u64;
        let (rows, keys) = (share(q_len, self.q_offsets.is_some()), share(capacity, self.kv_offsets.is_some()));
        let mut pairs = rows.saturating_mul(keys);
        if self.causal {
            let seeing = rows.min(keys); // the last of them sees all keys, each one before it one key less
            pairs = seeing.saturating_mul(2 * keys - seeing + u64::from(seeing > 0)) / 2;
        }
        if self.window > 0 {
            let visible = if self.causal { self.window } else { self.window.saturating_mul(2) - 1 };
            pairs = pairs.min(rows.saturating_mul(visible as u64));
        }
        [batch, heads, d.saturating_add(dv), 2].iter().fold(pairs, |n, &f| n.saturating_mul(f as u64))
    }

    fn bytes(&self, operands: &Operands) -> u64 {
        let Sizes { batch, .. } = self.sizes();
        let moved = operands.iter().map(|o| {
            let all = o.spec.bytes() as u64;
            if !matches!(o.name, "k" | "v") || self.kv_offsets.is_some() {
                return all;
            }
            // Keys out of reach, and pages in no sequence, are not read.
            let row = o.spec.dtype().bytes(o.spec.dim(0)).unwrap_or(0) as u64;
            let rows = [batch, self.reach(), o.spec.dim(1)].iter().fold(1u64, |n, &f| n.saturating_mul(f as u64));
            all.min(rows.saturating_mul(row))
        });
        moved.fold(0, u64::saturating_add)
    }

    fn reference(&self, arrays: &mut Arrays) {
        reference::run(self, arrays);
    }

    /// For `out` the sum over keys of `|weight * v|`, plus what the errors of the scores do to the weights, is the magnitude (see
    /// `reference.rs`): so the fraction is that of the last sum, the exponential and the division.
    fn bound(&self, _output: &str) -> Bound {
        let exact = Bound::relative(self.sum_error());
        match self.numerics {
            Numerics::Exact => exact,
            Numerics::Fast => Bound { nmse: Some(5e-4), ..exact },
        }
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        let (spec, Sizes { capacity, q_len, .. }) = (&operand.spec, self.sizes());
        let (n, special) = (spec.numel(), fill == Fill::Special);
        let mut each = |f: &mut dyn FnMut(&mut Rng) -> f64| Some((0..n).map(|_| f(rng)).collect());
        match operand.name {
            "q_offsets" => Some(fill_offsets(n, q_len, rng)),
            "kv_offsets" => Some(fill_offsets(n, capacity, rng)),
            "q_len" => Some(fill_lengths(n, q_len, rng)),
            "kv_len" => {
                let most = if special { capacity as f64 - 1.0 } else { f64::INFINITY }; // a key is left over: see below
                Some(fill_lengths(n, capacity, rng).into_iter().map(|l| l.min(most)).collect())
            }
            "block_table" => Some(fill_pages(n, self.k.dim(3), rng)),
            "key_mask" => Some((0..n).map(|i| f64::from(i / capacity != 1 && rng.below(4) > 0)).collect()),
            "mask" => Some((0..n).map(|i| fill_mask(i / capacity, special, rng)).collect()),
            "alibi" => Some((0..n).map(|h| 0.5f64.powi(1 + h as i32 % 8)).collect()),
            "sinks" => each(&mut |rng| rng.value(Fill::Normal)),
            // 8 bits do not resolve scores in the thousands: the fast mode is not judged on them.
            "q" | "k" if fill == Fill::Large && self.numerics == Numerics::Fast => each(&mut |rng| rng.value(Fill::Normal)),
            "q" | "k" | "v" if special => {
                let mut values: Vec<f64> = (0..n).map(|_| rng.value(Fill::Normal)).collect();
                if !spec.dtype().is_quantized() {
                    let d = spec.dim(0).max(1);
                    for row in values.chunks_exact_mut(d).filter(|_| operand.name != "v") {
                        if rng.below(8) == 0 {
                            row[rng.below(d)] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][rng.below(3)];
                        }
                    }
                    if operand.name != "q" && self.kv_len.is_some() && self.block_table.is_none() {
                        // The last key of each sequence is beyond every length.
                        let row = spec.dim(1) * d;
                        for keys in values.chunks_exact_mut((capacity * row).max(1)) {
                            keys[(capacity - 1) * row..].fill(f64::NAN);
                        }
                    }
                }
                Some(values)
            }
            _ => None,
        }
    }

    fn class(&self) -> Self {
        let Sizes { q_len, capacity, heads, .. } = self.sizes();
        let rows = class_rows(q_len);
        let keys = if self.kv_offsets.is_some() { class_rows(capacity) } else { self.k.dim(2) };
        // Replaces the extent that is `from_last` dimensions from the innermost one.
        let with = |s: &Spec, from_last: usize, n: usize| {
            let mut shape = s.shape().to_vec();
            let at = shape.len() - 1 - from_last;
            shape[at] = n;
            Spec::new(s.dtype(), &shape)
        };
        let dense = |s: Option<Spec>| s.map(|s| s.dense());
        let build = || -> crate::Result<Self> {
            Ok(Attention {
                q: with(&self.q, 2, rows)?,
                out: with(&self.out, 2, rows)?,
                k: with(&self.k, 2, keys)?,
                v: with(&self.v, 2, keys)?,
                mask: self.mask.map(|s| with(&s, 1, rows)).transpose()?,
                lse: self.lse.map(|s| with(&s, 0, rows)).transpose()?,
                q_len: dense(self.q_len),
                kv_len: dense(self.kv_len),
                q_offsets: dense(self.q_offsets),
                kv_offsets: dense(self.kv_offsets),
                block_table: dense(self.block_table),
                key_mask: dense(self.key_mask),
                alibi: dense(self.alibi),
                sinks: dense(self.sinks),
                ..*self
            })
        };
        // A rounded length may no longer be one that i32 holds.
        build().ok().filter(|op| heads == 0 || op.check().is_ok()).unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        cases::all()
    }
}

/// Lengths up to `most`: a random one first, then none, then two outside that are clamped, then random ones.
pub(crate) fn fill_lengths(n: usize, most: usize, rng: &mut Rng) -> Vec<f64> {
    let one = |i| match i {
        1 => 0.0,
        2 => most as f64 + 7.0,
        3 => -2.0,
        _ => (most - rng.below(most / 2 + 1)) as f64,
    };
    (0..n).map(one).collect()
}

/// Pages in random order, each used once while they last; in longer tables one entry that names none.
fn fill_pages(n: usize, pages: usize, rng: &mut Rng) -> Vec<f64> {
    let mut all: Vec<f64> = (0..pages.max(n)).map(|p| if p < pages { p as f64 } else { rng.below(pages) as f64 }).collect();
    (1..all.len()).rev().for_each(|i| all.swap(i, rng.below(i + 1)));
    all.truncate(n);
    if pages == 0 || n > 6 {
        all.iter_mut().step_by(7).for_each(|p| *p = -1.0);
    }
    all
}

/// An element of row `row` of an additive mask: now and then -inf, the second row wholly; or the least f32, as models have it, the
/// third row wholly.
fn fill_mask(row: usize, special: bool, rng: &mut Rng) -> f64 {
    match rng.below(40) {
        0 if special => f64::NAN,
        _ if row == 1 => f64::NEG_INFINITY,
        _ if row == 2 => f32::MIN as f64,
        0..8 => f64::NEG_INFINITY,
        8..12 => f32::MIN as f64,
        _ => rng.value(Fill::Normal),
    }
}
