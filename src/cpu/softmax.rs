//! Softmax over rows: a row is brought into the cache as f32 once; maximum, exponentials and division go over it there.

use std::sync::Arc;

use super::{
    Device,
    kernel::{Args, Kernel, Tensor},
    pool::Pool,
    row::{Row, padded},
    simd::{Simd, math, simd},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Determinism, Features, Softmax},
};

/// Elements a task covers at least: a few microseconds of work.
const TASK: usize = 1 << 13;

pub(super) fn plan(device: &Arc<Device>, op: &Softmax) -> Result<Plans> {
    let op = *op;
    let known = Features::STRIDED | Features::SCALE | Features::MASK | Features::BROADCAST;
    let kernel = Kernel::new(device, op, format_args!("softmax-{}", op.x.dtype()), known)?;
    let n = op.x.dim(0);
    let rows = if n == 0 { 0 } else { op.x.rows() };
    let (each, wide) = (TASK.div_ceil(n.max(1)), padded(n));
    let mask_spec = op.mask.map(|m| m.broadcast(op.x.shape())).transpose()?;
    // A thread's buffers: the row and its mask.
    let scratch = wide.saturating_mul(2 * size_of::<f32>()).saturating_mul(device.info.threads);
    kernel.determinism(Determinism::BatchInvariant).scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        let (x, out) = (args.of("x"), args.of("out"));
        let mask = args.get("mask").zip(mask_spec.as_ref()).map(|(mask, spec)| mask.seen_as(spec));
        pool.run(rows.div_ceil(each), |task, thread| {
            // SAFETY: each thread has its own part of the scratch memory.
            let buffer = unsafe { args.scratch::<f32>().add(thread * 2 * wide) };
            for r in task * each..rows.min((task + 1) * each) {
                // SAFETY: the row exists and is written by this task alone.
                simd!(args.isa, s => unsafe { softmax(s, &op, (&x, mask.as_ref(), &out), r, buffer) })
            }
        })
    })
}

/// # Safety
/// Row `r` exists and is this call's alone; `row` is two padded rows.
#[inline(always)]
unsafe fn softmax<S: Simd>(
    s: S,
    op: &Softmax,
    (x, mask, out): (&Tensor, Option<&Tensor>, &Tensor),
    r: usize,
    row: *mut f32,
) {
    let n = op.x.dim(0);
    let scale = s.splat(op.scale.get());
    let nothing = s.splat(f32::NEG_INFINITY);
    // SAFETY: whole vectors of padded buffers.
    unsafe {
        let other = row.add(padded(n));
        Row::of(x, r).load(s, n, row);
        if let Some(mask) = mask {
            Row::of(mask, r).load(s, n, other);
        }
        let mut largest = nothing;
        let mut i = 0;
        while i < n {
            let mut v = s.mul(scale, s.load(row.add(i)));
            if mask.is_some() {
                v = s.add(v, s.load(other.add(i)));
            }
            s.store(row.add(i), v);
            if i + S::LANES > n {
                // Lanes beyond the row hide.
                for j in n..i + S::LANES {
                    *row.add(j) = f32::NEG_INFINITY;
                }
                v = s.load(row.add(i));
            }
            largest = s.max(v, largest); // NaN is left to the sum
            i += S::LANES;
        }
        let largest = s.max_lane(largest);
        // -inf only: the exponentials are 0 whatever is subtracted.
        let shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let mut sum = s.zero();
        for i in (0..n).step_by(S::LANES) {
            let v = s.sub(s.load(row.add(i)), s.splat(shift));
            let e = math::exp(s, v);
            sum = s.add(sum, e);
            s.store(row.add(i), if op.log { v } else { e });
        }
        let sum = s.sum(sum);
        if op.log {
            // ln 0 would turn -inf into NaN.
            let ln = s.splat(if sum == 0.0 { 0.0 } else { sum.ln() });
            for i in (0..n).step_by(S::LANES) {
                s.store(row.add(i), s.sub(s.load(row.add(i)), ln));
            }
        } else {
            let inverse = s.splat(if sum == 0.0 { 0.0 } else { 1.0 / sum });
            for i in (0..n).step_by(S::LANES) {
                s.store(row.add(i), s.mul(s.load(row.add(i)), inverse));
            }
        }
        Row::of(out, r).store(s, n, row);
    }
}
