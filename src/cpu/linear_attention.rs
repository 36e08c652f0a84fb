//! Linear attention: a task is one head of one sequence, in blocks of tokens, all of it products of small matrices.
//!
//! Causal, a block of queries meets what came before in the sums, and its own keys in a triangle:
//!
//! ```text
//! out = Q S + tri(Q Kᵀ) V, then S += Kᵀ V      Q, K: mapped [BLOCK][features]    S: [features][dv]
//! ```
//!
//! So S is read and written once for each block, not for each token.

use std::{ops::Range, sync::Arc};

use super::{
    Device,
    attention::length,
    kernel::{Args, Kernel, Tensor},
    pool::Pool,
    product::{Left, Rows, Start, product},
    row::{Row, padded},
    simd::{Simd, simd},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Determinism, Features, LinearAttention},
};

/// Tokens of a block.
const BLOCK: usize = 32;

pub(super) fn plan(device: &Arc<Device>, op: &LinearAttention) -> Result<Plans> {
    let op = *op;
    let known = Features::STRIDED | Features::CAUSAL | Features::LENGTHS;
    let kernel = Kernel::new(device, op, format_args!("linear_attention-{}", op.q.dtype()), known)?;
    let (batch, _, heads, d, features, _) = op.dims();
    let (omega, each) = (d.saturating_mul(padded(features)), Head::floats(&op));
    let floats = each.saturating_mul(device.info.threads).saturating_add(omega);
    let scratch = floats.saturating_mul(size_of::<f32>());
    kernel.determinism(Determinism::BatchInvariant).scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        let map = args.of("omega");
        for i in 0..d {
            // SAFETY: scratch begins with omega, its rows padded.
            simd!(args.isa, s => unsafe {
                let to = args.scratch::<f32>().add(i * padded(features));
                to.write_bytes(0, padded(features));
                Row::of(&map, i).load(s, features, to);
            })
        }
        pool.run(batch * heads, |task, thread| {
            // SAFETY: each thread has its own buffers; a head is one task's.
            simd!(args.isa, s => unsafe {
                let memory = args.scratch::<f32>();
                let head = Head::new(&op, memory, memory.add(omega + thread * each), task);
                attend(s, &head, args);
            })
        })
    })
}

/// One head of one sequence, and a thread's buffers.
struct Head<'a> {
    op: &'a LinearAttention,
    batch: usize,
    head: usize,
    /// `[d][features]`, rows padded like all of these.
    omega: Rows,
    /// `[BLOCK][d]`
    tokens: Rows,
    /// `[BLOCK][features]`: queries.
    mapped: Rows,
    /// `[BLOCK][features]`: keys.
    keys: Rows,
    /// `[features][BLOCK]`: keys.
    turned: Rows,
    /// `[BLOCK][BLOCK]`
    scores: Rows,
    /// `[BLOCK][dv]`
    values: Rows,
    /// `[BLOCK][dv]`
    results: Rows,
    /// `[features][dv]`: sums over keys of the mapped key times the value.
    sums: Rows,
    /// `[features]`: sums of the mapped keys.
    norm: *mut f32,
}

impl Head<'_> {
    /// Lengths of the buffers, in the order of the fields from `tokens` on.
    fn lengths(op: &LinearAttention) -> [usize; 9] {
        let (_, _, _, d, features, dv) = op.dims();
        let rows = |n: usize| padded(n).saturating_mul(BLOCK);
        let (mapped, values) = (rows(features), rows(dv));
        let (turned, scores) = if op.causal { (mapped, BLOCK * BLOCK) } else { (0, 0) };
        let sums = features.saturating_mul(padded(dv));
        [rows(d), mapped, mapped, turned, scores, values, values, sums, padded(features)]
    }

    fn floats(op: &LinearAttention) -> usize {
        Head::lengths(op).into_iter().fold(0, usize::saturating_add)
    }

    /// # Safety
    /// `omega` holds the map, `memory` is `Head::floats` long.
    unsafe fn new(op: &LinearAttention, omega: *mut f32, memory: *mut f32, task: usize) -> Head<'_> {
        let (_, _, heads, d, features, dv) = op.dims();
        let rows = |pointer, n| Rows { pointer, stride: padded(n) };
        let mut next = memory;
        let [tokens, mapped, keys, turned, scores, values, results, sums, norm] = Head::lengths(op).map(|n| {
            let this = next;
            // SAFETY: the lengths add up to the whole.
            next = unsafe { next.add(n) };
            this
        });
        Head {
            op,
            batch: task / heads,
            head: task % heads,
            omega: rows(omega, features),
            tokens: rows(tokens, d),
            mapped: rows(mapped, features),
            keys: rows(keys, features),
            turned: rows(turned, BLOCK),
            scores: rows(scores, BLOCK),
            values: rows(values, dv),
            results: rows(results, dv),
            sums: rows(sums, dv),
            norm,
        }
    }

    /// The row of q, k, v or out of a token.
    fn row(&self, t: &Tensor, token: usize) -> Row {
        let (_, length, heads, ..) = self.op.dims();
        Row::of(t, (self.batch * length + token) * heads + self.head)
    }

    /// `relu(x omega) + eps` of some tokens; zeros beyond the features, and beyond the tokens.
    ///
    /// # Safety
    /// The tokens exist and are at most `BLOCK`; `to` is `mapped` or `keys`.
    #[inline(always)]
    unsafe fn map<S: Simd>(&self, s: S, x: &Tensor, tokens: Range<usize>, to: Rows) {
        let (_, _, _, d, features, _) = self.op.dims();
        let (Rows { pointer, stride }, wide, count) = (self.tokens, padded(features), tokens.len());
        // SAFETY: whole vectors of padded rows.
        unsafe {
            for (i, token) in tokens.enumerate() {
                self.row(x, token).load(s, d, pointer.add(i * stride));
            }
            let left = Left { pointer, row: stride, column: 1 };
            product(s, (count, wide, d), left, self.omega, to, Start::Zero);
            for i in 0..count {
                let row = to.pointer.add(i * wide);
                for j in (0..features).step_by(S::LANES) {
                    s.store(row.add(j), s.add(s.max(s.zero(), s.load(row.add(j))), s.splat(self.op.eps.get())));
                }
                row.add(features).write_bytes(0, wide - features);
            }
            to.pointer.add(count * wide).write_bytes(0, (BLOCK - count) * wide);
        }
    }

    /// Brings some keys, mapped, and their values in.
    ///
    /// # Safety
    /// As for `map`.
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, s: S, args: &Args, tokens: Range<usize>) {
        let (_, _, _, _, _, dv) = self.op.dims();
        let v = args.of("v");
        // SAFETY: whole vectors of padded rows.
        unsafe {
            self.map(s, &args.of("k"), tokens.clone(), self.keys);
            for (i, token) in tokens.enumerate() {
                self.row(&v, token).load(s, dv, self.values.pointer.add(i * self.values.stride));
            }
        }
    }

    /// Adds the keys that were read to the sums.
    ///
    /// # Safety
    /// There are `count` of them.
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, s: S, count: usize) {
        let (_, _, _, _, features, dv) = self.op.dims();
        let Rows { pointer, stride } = self.keys;
        // SAFETY: whole vectors of padded rows.
        unsafe {
            for j in (0..features).step_by(S::LANES) {
                let mut norm = s.load(self.norm.add(j));
                for i in 0..count {
                    norm = s.add(norm, s.load(pointer.add(i * stride + j)));
                }
                s.store(self.norm.add(j), norm);
            }
            let left = Left { pointer, row: 1, column: stride };
            let size = (features, dv.next_multiple_of(S::LANES), count);
            product(s, size, left, self.values, self.sums, Start::Keep);
        }
    }

    /// Writes some rows of the result: of the sums and, where causal, of those keys that were read which a row may see.
    ///
    /// # Safety
    /// As for `map`; where causal, the keys are those of the tokens.
    #[inline(always)]
    unsafe fn answer<S: Simd>(&self, s: S, args: &Args, tokens: Range<usize>) {
        let (_, _, _, _, features, dv) = self.op.dims();
        let (out, wide, count, columns) =
            (args.of("out"), padded(features), tokens.len(), dv.next_multiple_of(S::LANES));
        // SAFETY: whole vectors of padded rows; BLOCK is a multiple of LANES.
        unsafe {
            self.map(s, &args.of("q"), tokens.clone(), self.mapped);
            let left = Left { pointer: self.mapped.pointer, row: wide, column: 1 };
            product(s, (count, columns, features), left, self.sums, self.results, Start::Zero);
            if self.op.causal {
                for i in (0..BLOCK).step_by(S::LANES) {
                    for j in (0..wide).step_by(S::LANES) {
                        let to = self.turned.pointer.add(j * BLOCK + i);
                        s.transpose(self.keys.pointer.add(i * wide + j), wide, to, BLOCK);
                    }
                }
                product(s, (count, BLOCK, features), left, self.turned, self.scores, Start::Zero);
                for i in 0..count {
                    self.scores.pointer.add(i * BLOCK + i + 1).write_bytes(0, BLOCK - i - 1);
                }
                let left = Left { pointer: self.scores.pointer, row: BLOCK, column: 1 };
                product(s, (count, columns, count), left, self.values, self.results, Start::Keep);
            }
            for (i, token) in tokens.enumerate() {
                let mut sum = s.zero();
                for j in (0..features).step_by(S::LANES) {
                    let mapped = s.load(self.mapped.pointer.add(i * wide + j));
                    sum = s.fma(mapped, s.load(self.norm.add(j)), sum);
                }
                if self.op.causal {
                    for j in (0..BLOCK).step_by(S::LANES) {
                        sum = s.add(sum, s.load(self.scores.pointer.add(i * BLOCK + j)));
                    }
                }
                let divisor = s.sum(sum) + self.op.eps.get();
                let factor = if divisor == 0.0 { 0.0 } else { 1.0 / divisor };
                let row = self.results.pointer.add(i * self.results.stride);
                for j in (0..dv).step_by(S::LANES) {
                    s.store(row.add(j), s.mul(s.load(row.add(j)), s.splat(factor)));
                }
                self.row(&out, token).store(s, dv, row);
            }
        }
    }
}

/// # Safety
/// The head is this call's alone.
#[inline(always)]
unsafe fn attend<S: Simd>(s: S, head: &Head, args: &Args) {
    let (_, t, _, _, features, dv) = head.op.dims();
    let (valid, out) = (length(args.get("lengths"), head.batch, t), args.of("out"));
    // SAFETY: blocks lie inside the sequence.
    unsafe {
        head.sums.pointer.write_bytes(0, features * padded(dv));
        head.norm.write_bytes(0, padded(features));
        for first in (0..valid).step_by(BLOCK) {
            let tokens = first..valid.min(first + BLOCK);
            head.read(s, args, tokens.clone());
            if head.op.causal {
                head.answer(s, args, tokens.clone());
            }
            head.add(s, tokens.len());
        }
        if !head.op.causal {
            for first in (0..valid).step_by(BLOCK) {
                head.answer(s, args, first..valid.min(first + BLOCK));
            }
        }
        head.results.pointer.write_bytes(0, padded(dv));
        for token in valid..t {
            head.row(&out, token).store(s, dv, head.results.pointer);
        }
    }
}
