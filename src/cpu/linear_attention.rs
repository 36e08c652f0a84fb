//! Linear attention: a task is one head of one sequence, in blocks of tokens; causal ones go token by token.

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
    /// `[BLOCK][features]`
    mapped: Rows,
    /// `[BLOCK][dv]`
    values: Rows,
    /// `[features][dv]`: sums over keys of the mapped key times the value.
    sums: Rows,
    /// `[features]`: sums of the mapped keys.
    norm: *mut f32,
}

impl Head<'_> {
    fn floats(op: &LinearAttention) -> usize {
        let (_, _, _, d, features, dv) = op.dims();
        let rows = padded(d).saturating_add(padded(features)).saturating_add(padded(dv)).saturating_mul(BLOCK);
        rows.saturating_add(features.saturating_mul(padded(dv))).saturating_add(padded(features))
    }

    /// # Safety
    /// `omega` holds the map, `memory` is `Head::floats` long.
    unsafe fn new(op: &LinearAttention, omega: *mut f32, memory: *mut f32, task: usize) -> Head<'_> {
        let (_, _, heads, d, features, dv) = op.dims();
        let rows = |pointer, n| Rows { pointer, stride: padded(n) };
        // SAFETY: the lengths add up to the whole.
        unsafe {
            let mapped = memory.add(BLOCK * padded(d));
            let values = mapped.add(BLOCK * padded(features));
            let sums = values.add(BLOCK * padded(dv));
            Head {
                op,
                batch: task / heads,
                head: task % heads,
                omega: rows(omega, features),
                tokens: rows(memory, d),
                mapped: rows(mapped, features),
                values: rows(values, dv),
                sums: rows(sums, dv),
                norm: sums.add(features * padded(dv)),
            }
        }
    }

    /// The row of q, k, v or out of a token.
    fn row(&self, t: &Tensor, token: usize) -> Row {
        let (_, length, heads, ..) = self.op.dims();
        Row::of(t, (self.batch * length + token) * heads + self.head)
    }

    /// `relu(x omega) + eps` of some tokens; zeros beyond the features.
    ///
    /// # Safety
    /// The tokens exist and are at most `BLOCK`.
    #[inline(always)]
    unsafe fn map<S: Simd>(&self, s: S, x: &Tensor, tokens: Range<usize>) {
        let (_, _, _, d, features, _) = self.op.dims();
        let (Rows { pointer, stride }, wide, count) = (self.tokens, padded(features), tokens.len());
        // SAFETY: whole vectors of padded rows.
        unsafe {
            for (i, token) in tokens.enumerate() {
                self.row(x, token).load(s, d, pointer.add(i * stride));
            }
            let left = Left { pointer, row: stride, column: 1 };
            product(s, (count, wide, d), left, self.omega, self.mapped, Start::Zero);
            for i in 0..count {
                let row = self.mapped.pointer.add(i * wide);
                for j in (0..features).step_by(S::LANES) {
                    s.store(row.add(j), s.add(s.max(s.zero(), s.load(row.add(j))), s.splat(self.op.eps.get())));
                }
                row.add(features).write_bytes(0, wide - features);
            }
        }
    }

    /// Adds some keys to the sums.
    ///
    /// # Safety
    /// As for `map`.
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, s: S, args: &Args, tokens: Range<usize>) {
        let (_, _, _, _, features, dv) = self.op.dims();
        let (v, count, wide) = (args.of("v"), tokens.len(), padded(features));
        // SAFETY: whole vectors of padded rows.
        unsafe {
            self.map(s, &args.of("k"), tokens.clone());
            for (i, token) in tokens.enumerate() {
                self.row(&v, token).load(s, dv, self.values.pointer.add(i * self.values.stride));
                for j in (0..features).step_by(S::LANES) {
                    let mapped = s.load(self.mapped.pointer.add(i * wide + j));
                    s.store(self.norm.add(j), s.add(s.load(self.norm.add(j)), mapped));
                }
            }
            let left = Left { pointer: self.mapped.pointer, row: 1, column: wide };
            let size = (features, dv.next_multiple_of(S::LANES), count);
            product(s, size, left, self.values, self.sums, Start::Keep);
        }
    }

    /// Writes some rows of the result.
    ///
    /// # Safety
    /// As for `map`.
    #[inline(always)]
    unsafe fn answer<S: Simd>(&self, s: S, args: &Args, tokens: Range<usize>) {
        let (_, _, _, _, features, dv) = self.op.dims();
        let (out, wide) = (args.of("out"), padded(features));
        // SAFETY: whole vectors of padded rows.
        unsafe {
            self.map(s, &args.of("q"), tokens.clone());
            let left = Left { pointer: self.mapped.pointer, row: wide, column: 1 };
            let size = (tokens.len(), dv.next_multiple_of(S::LANES), features);
            product(s, size, left, self.sums, self.values, Start::Zero);
            for (i, token) in tokens.enumerate() {
                let mut sum = s.zero();
                for j in (0..features).step_by(S::LANES) {
                    let mapped = s.load(self.mapped.pointer.add(i * wide + j));
                    sum = s.fma(mapped, s.load(self.norm.add(j)), sum);
                }
                let divisor = s.sum(sum) + self.op.eps.get();
                let factor = if divisor == 0.0 { 0.0 } else { 1.0 / divisor };
                let row = self.values.pointer.add(i * self.values.stride);
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
    let each = if head.op.causal { 1 } else { BLOCK };
    // SAFETY: blocks lie inside the sequence.
    unsafe {
        head.sums.pointer.write_bytes(0, features * padded(dv));
        head.norm.write_bytes(0, padded(features));
        for first in (0..valid).step_by(each) {
            head.add(s, args, first..valid.min(first + each));
            if head.op.causal {
                head.answer(s, args, first..first + 1);
            }
        }
        if !head.op.causal {
            for first in (0..valid).step_by(each) {
                head.answer(s, args, first..valid.min(first + each));
            }
        }
        head.values.pointer.write_bytes(0, padded(dv));
        for token in valid..t {
            head.row(&out, token).store(s, dv, head.values.pointer);
        }
    }
}
