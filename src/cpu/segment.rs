//! Sums and softmax over the rows of each segment. Tasks share the segments among themselves, and go along the rows in vectors.

use std::sync::Arc;

use super::{
    Device,
    chain::Chains,
    kernel::{Args, Kernel, Tensor},
    pool::Pool,
    reduce::{STRETCH, numbers},
    scatter::{Sums, TASK},
    simd::{Simd, math, row, simd},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Features, Segment, segment::SegmentKind},
};

pub(super) fn plan(device: &Arc<Device>, op: &Segment) -> Result<Plans> {
    let op = *op;
    let kernel = Kernel::new(device, op, format_args!("segment-{}", op.x.dtype()), Features::STRIDED)?;
    let (rows, d, count) = op.dims();
    kernel.scratch(Chains::scratch(rows, count)).plan(move |args: &Args, pool: &mut Pool| {
        let (x, out) = (args.of("x"), args.of("out"));
        // SAFETY: the scratch memory was asked for.
        let chains = unsafe { Chains::build(args.of("segments"), count, args.scratch()) };
        if op.kind == SegmentKind::Sum {
            return Sums { x, weight: None, out, keep: false }.run(args.isa, &chains, pool);
        }
        let parts = d.div_ceil(STRETCH);
        let segments = TASK / d.clamp(1, STRETCH);
        // The last chain: rows of no segment.
        pool.run((count + 1).div_ceil(segments) * parts, |task, _| {
            let (first, at) = (task / parts * segments, task % parts * STRETCH);
            for segment in first..(first + segments).min(count + 1) {
                let columns = (at, STRETCH.min(d - at));
                let none = segment == count;
                // SAFETY: the columns exist; a row belongs to one segment, and so to this task alone.
                simd!(args.isa, s => unsafe { softmax(s, (&x, &out), chains.of(segment), columns, none) });
            }
        });
    })
}

/// Softmax down each column over some rows; zeros where they belong to no segment.
///
/// # Safety
/// The rows have the columns `at .. at + n`, at most [`STRETCH`], and nobody else uses those of `out`.
#[inline(always)]
unsafe fn softmax<S: Simd>(
    s: S,
    (x, out): (&Tensor, &Tensor),
    rows: impl Iterator<Item = usize> + Clone,
    (at, n): (usize, usize),
    none: bool,
) {
    let (mut most, mut sum) = ([f32::NEG_INFINITY; STRETCH], [0f32; STRETCH]);
    let (mut buffer, mut result) = ([0f32; STRETCH], [0f32; STRETCH]);
    let (most, sum) = (most.as_mut_ptr(), sum.as_mut_ptr());
    // SAFETY: the caller's promise; buffers hold whole vectors.
    unsafe {
        macro_rules! each {
            ($row:ident, $v:ident, $j:ident => $body:expr) => {{
                let from = numbers(s, x, ($row, at, n), &mut buffer);
                for $j in (0..n).step_by(S::LANES) {
                    let $v =
                        if $j + S::LANES <= n { s.load(from.add($j)) } else { s.load_partial(from.add($j), n - $j) };
                    $body
                }
            }};
        }
        if !none {
            for r in rows.clone() {
                each!(r, v, j => s.store(most.add(j), s.max(v, s.load(most.add(j))))); // NaN is left to the sum
            }
            for j in (0..n).step_by(S::LANES) {
                // -inf only: the exponentials are 0 whatever is subtracted.
                let m = s.load(most.add(j));
                s.store(most.add(j), s.select(s.eq(m, s.splat(f32::NEG_INFINITY)), s.zero(), m));
            }
            for r in rows.clone() {
                each!(r, v, j => {
                    let e = math::exp(s, s.sub(v, s.load(most.add(j))));
                    s.store(sum.add(j), s.add(s.load(sum.add(j)), e));
                });
            }
            for j in (0..n).step_by(S::LANES) {
                let total = s.load(sum.add(j));
                let inverse = s.div(s.splat(1.0), total);
                s.store(sum.add(j), s.select(s.eq(total, s.zero()), s.zero(), inverse));
            }
        }
        for r in rows {
            if !none {
                each!(r, v, j => {
                    let e = math::exp(s, s.sub(v, s.load(most.add(j))));
                    s.store(result.as_mut_ptr().add(j), s.mul(e, s.load(sum.add(j))));
                });
            }
            row::write(s, out.dtype(), result.as_ptr(), out.at(r, at), out.spec.stride(0), n);
        }
    }
}
