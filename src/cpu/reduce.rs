//! One number per row. Stretches of a row are summed up in f32 vectors, stretches are added up in f64, in order; a long row is split
//! into parts for several threads, always at the same places. A stretch whose f32 sum overflows is added up in f64.

use std::sync::Arc;

use super::{
    Device,
    kernel::{Args, Kernel, Tensor},
    pool::Pool,
    simd::{Simd, math, row, simd},
};
use crate::{
    backend::Plans,
    dtype::DType,
    error::Result,
    op::{Determinism, Features, Reduce, reduce::Reduction},
};

/// Elements of a buffer.
pub(super) const STRETCH: usize = 512;
/// Elements of a task, and of a part of a row.
const PART: usize = 1 << 14;

pub(super) fn plan(device: &Arc<Device>, op: &Reduce) -> Result<Plans> {
    let op = *op;
    let known = Features::STRIDED | Features::BROADCAST | Features::MASK;
    let kernel = Kernel::new(device, op, format_args!("reduce-{}", op.x.dtype()), known)?;
    let (n, rows) = (op.x.dim(0), op.x.rows());
    let mask_spec = op.mask.map(|m| m.broadcast(op.x.shape())).transpose()?;
    // A task is some rows, or a part of one.
    let parts = n.div_ceil(PART).max(1);
    let rows_per_task = (PART / n.max(1)).max(1);
    let tasks = rows.div_ceil(rows_per_task) * parts;
    let normalizes = op.kind == Reduction::L2Normalize;
    let scratch = if parts > 1 { size_of::<Partial>().saturating_mul(rows).saturating_mul(parts) } else { 0 };
    kernel.determinism(Determinism::BatchInvariant).scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        let (x, out) = (args.of("x"), args.of("out"));
        let mask = args.get("mask").zip(mask_spec.as_ref()).map(|(mask, spec)| mask.seen_as(spec));
        let columns = |part: usize| part * PART..(part * PART + PART).min(n);
        pool.run(tasks, |task, _| {
            let (first, part) = (task / parts * rows_per_task, task % parts);
            for r in first..(first + rows_per_task).min(rows) {
                let run = Run { kind: op.kind, x, mask, row: r };
                // SAFETY: the row exists; each task has rows or a place in the scratch memory of its own.
                unsafe {
                    let partial = simd!(args.isa, s => run.reduce(s, columns(part)));
                    if parts > 1 {
                        *args.scratch::<Partial>().add(r * parts + part) = partial;
                    } else if normalizes {
                        simd!(args.isa, s => normalize(s, (x, out), (r, columns(0)), partial.norm(&op)));
                    } else {
                        partial.write(&op, out, r);
                    }
                }
            }
        });
        if parts == 1 {
            return;
        }
        let whole = |r: usize| {
            // SAFETY: one partial for each part of each row was written above.
            let part = |p: usize| unsafe { *args.scratch::<Partial>().add(r * parts + p) };
            (1..parts).fold(part(0), |whole, p| whole.then(part(p), op.kind))
        };
        if normalizes {
            pool.run(tasks, |task, _| {
                let (r, part) = (task / parts, task % parts);
                // SAFETY: the columns exist and are this task's alone.
                simd!(args.isa, s => unsafe { normalize(s, (x, out), (r, columns(part)), whole(r).norm(&op)) });
            });
        } else {
            // SAFETY: the row exists.
            (0..rows).for_each(|r| unsafe { whole(r).write(&op, out, r) });
        }
    })
}

/// What is known of a part of a row.
#[derive(Debug, Clone, Copy)]
struct Partial {
    /// Elements that are not hidden.
    count: usize,
    /// Of the elements, of their squares, or of `exp(x - best)`; NaN where there is one.
    sum: f64,
    /// The largest element; NaN beats every number.
    best: f32,
    /// The first place of the largest element.
    index: usize,
}

impl Partial {
    const EMPTY: Partial = Partial { count: 0, sum: 0.0, best: f32::NEG_INFINITY, index: 0 };

    /// This part and the one that follows it.
    fn then(self, next: Partial, kind: Reduction) -> Partial {
        if self.count == 0 || next.count == 0 {
            return if self.count == 0 { next } else { self };
        }
        let first = !beats(next.best, self.best);
        let (best, index) = if first { (self.best, self.index) } else { (next.best, next.index) };
        let scaled = |p: Partial| match kind == Reduction::LogSumExp && p.best != best {
            true => p.sum * f64::from(p.best - best).exp(),
            false => p.sum,
        };
        Partial { count: self.count + next.count, sum: scaled(self) + scaled(next), best, index }
    }

    /// What rows are divided by.
    fn norm(self, op: &Reduce) -> f64 {
        let norm = self.sum.sqrt();
        if norm < op.eps.f64() { op.eps.f64() } else { norm } // NaN stays
    }

    /// # Safety
    /// The row exists, and nobody else writes its result.
    unsafe fn write(self, op: &Reduce, out: Tensor, row: usize) {
        let value = match op.kind {
            Reduction::ArgMax => {
                let index = if self.count == 0 { -1 } else { self.index as i32 }; // checked: it fits
                // SAFETY: arg-max gives i32.
                return unsafe { *out.at::<i32>(row, 0) = index };
            }
            Reduction::Mean => self.sum / self.count.max(1) as f64,
            Reduction::Max => f64::from(self.best),
            // Infinite or NaN, it is the largest element itself.
            Reduction::LogSumExp if self.best.is_finite() => f64::from(self.best) + self.sum.ln(),
            Reduction::LogSumExp => f64::from(self.best),
            Reduction::Sum | Reduction::L2Normalize => self.sum,
        };
        // SAFETY: the caller's promise; one element.
        unsafe { row::write(super::simd::Scalar, out.dtype(), &(value as f32), out.at(row, 0), 1, 1) }
    }
}

/// The order of arg-max: NaN above every number; an equal one later in the row does not beat.
fn beats(v: f32, best: f32) -> bool {
    v > best || (v.is_nan() && !best.is_nan())
}

/// The largest element of `x`, the first of equals: as the row of an arg-max in one part.
///
/// # Safety
/// The row exists.
#[inline(always)]
pub(super) unsafe fn largest<S: Simd>(s: S, x: Tensor, row: usize) -> Option<(f32, usize)> {
    // SAFETY: the caller's promise.
    let all = unsafe { Run { kind: Reduction::ArgMax, x, mask: None, row }.reduce(s, 0..x.spec.dim(0)) };
    (all.count > 0).then_some((all.best, all.index))
}

/// A row to be reduced.
struct Run<'a> {
    kind: Reduction,
    x: Tensor<'a>,
    mask: Option<Tensor<'a>>,
    row: usize,
}

impl Run<'_> {
    /// # Safety
    /// The row and the columns exist.
    #[inline(always)]
    unsafe fn reduce<S: Simd>(&self, s: S, columns: std::ops::Range<usize>) -> Partial {
        let mut all = Partial::EMPTY;
        let (mut values, mut places) = ([0f32; STRETCH], [0u16; STRETCH]);
        let mut at = columns.start;
        while at < columns.end {
            let mut n = STRETCH.min(columns.end - at);
            // SAFETY: the caller's promise; stretches fit the buffers.
            unsafe {
                let mut from = numbers(s, &self.x, (self.row, at, n), &mut values);
                if self.mask.is_some() && from != values.as_ptr() {
                    std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), n);
                }
                if let Some(mask) = &self.mask {
                    n = compact(mask, (self.row, at, n), &mut values, &mut places);
                    from = values.as_ptr();
                }
                if n > 0 {
                    let mut part = stretch(s, self.kind, from, n);
                    if self.kind == Reduction::ArgMax && (all.count == 0 || beats(part.best, all.best)) {
                        let place = find(from, n, part.best);
                        part.index = at + if self.mask.is_some() { places[place] as usize } else { place };
                    }
                    all = all.then(part, self.kind);
                }
            }
            at += STRETCH;
        }
        all
    }
}

/// Where the columns `at .. at + n` of a row are f32 side by side: in place, or read into the buffer.
///
/// # Safety
/// The columns exist; n is at most [`STRETCH`].
#[inline(always)]
pub(super) unsafe fn numbers<S: Simd>(
    s: S,
    x: &Tensor,
    (row, at, n): (usize, usize, usize),
    buffer: &mut [f32; STRETCH],
) -> *const f32 {
    let (from, stride) = (x.at::<u8>(row, at), x.spec.stride(0));
    if x.dtype() == DType::F32 && stride == 1 {
        return from.cast();
    }
    // SAFETY: the caller's promise.
    unsafe { row::read(s, x.dtype(), from, stride, buffer.as_mut_ptr(), n) };
    buffer.as_ptr()
}

/// Moves what the mask shows to the front, and notes where it was; gives its number.
///
/// # Safety
/// The mask has the columns `at .. at + n` of the row, n at most [`STRETCH`].
#[inline(always)]
unsafe fn compact(
    mask: &Tensor,
    (row, at, n): (usize, usize, usize),
    values: &mut [f32; STRETCH],
    places: &mut [u16; STRETCH],
) -> usize {
    let (shown, stride) = (mask.at::<u8>(row, at), mask.spec.stride(0));
    let mut kept = 0;
    for j in 0..n {
        values[kept] = values[j];
        places[kept] = j as u16;
        // SAFETY: the caller's promise.
        kept += unsafe { *shown.add(j * stride) != 0 } as usize;
    }
    kept
}

/// A stretch of `n > 0` numbers side by side.
///
/// # Safety
/// `x` is readable for `n`.
#[inline(always)]
unsafe fn stretch<S: Simd>(s: S, kind: Reduction, x: *const f32, n: usize) -> Partial {
    // SAFETY: the caller's promise.
    unsafe {
        let empty = Partial { count: n, ..Partial::EMPTY };
        match kind {
            Reduction::Sum | Reduction::Mean => Partial { sum: sum(s, x, n, false), ..empty },
            Reduction::L2Normalize => Partial { sum: sum(s, x, n, true), ..empty },
            Reduction::Max | Reduction::ArgMax => Partial { best: max(s, x, n), ..empty },
            Reduction::LogSumExp => {
                let best = max(s, x, n);
                let mut sum = s.zero();
                if best.is_finite() {
                    let (shift, mut i) = (s.splat(best), 0);
                    while i + S::LANES <= n {
                        sum = s.add(sum, math::exp(s, s.sub(s.load(x.add(i)), shift)));
                        i += S::LANES;
                    }
                    let mut tail = [f32::NEG_INFINITY; 16];
                    std::ptr::copy_nonoverlapping(x.add(i), tail.as_mut_ptr(), n - i);
                    sum = s.add(sum, math::exp(s, s.sub(s.load(tail.as_ptr()), shift)));
                }
                Partial { sum: f64::from(s.sum(sum)), best, ..empty }
            }
        }
    }
}

/// The first place of `best`, which is among the `n` numbers.
///
/// # Safety
/// `x` is readable for `n`.
unsafe fn find(x: *const f32, n: usize, best: f32) -> usize {
    // SAFETY: the caller's promise.
    let row = unsafe { std::slice::from_raw_parts(x, n) };
    row.iter().position(|&v| v == best || (v.is_nan() && best.is_nan())).unwrap_or(0)
}

/// The largest of `n` numbers; NaN where there is one.
///
/// # Safety
/// `x` is readable for `n`.
#[inline(always)]
unsafe fn max<S: Simd>(s: S, x: *const f32, n: usize) -> f32 {
    let (mut best, mut nan, mut i) = ([s.splat(f32::NEG_INFINITY); 2], [s.zero(); 2], 0);
    // SAFETY: the caller's promise.
    unsafe {
        while i + 2 * S::LANES <= n {
            for (k, (best, nan)) in best.iter_mut().zip(&mut nan).enumerate() {
                let v = s.load(x.add(i + k * S::LANES));
                *best = s.max(v, *best); // passes NaN by
                *nan = s.select(s.eq(v, v), *nan, v);
            }
            i += 2 * S::LANES;
        }
        let mut largest = s.max_lane(s.max(best[0], best[1]));
        let mut nan = s.sum(s.add(nan[0], nan[1]));
        while i < n {
            let v = *x.add(i);
            largest = if v > largest { v } else { largest };
            nan = if v.is_nan() { v } else { nan };
            i += 1;
        }
        if nan.is_nan() { nan } else { largest }
    }
}

/// The sum of `n` numbers, or of their squares.
///
/// # Safety
/// `x` is readable for `n`.
#[inline(always)]
unsafe fn sum<S: Simd>(s: S, x: *const f32, n: usize, squares: bool) -> f64 {
    let (mut sums, mut i) = ([s.zero(); 4], 0);
    // SAFETY: the caller's promise.
    unsafe {
        macro_rules! add {
            ($sum:expr, $v:expr) => {{
                let v = $v;
                $sum = if squares { s.fma(v, v, $sum) } else { s.add($sum, v) };
            }};
        }
        while i + 4 * S::LANES <= n {
            for (k, sum) in sums.iter_mut().enumerate() {
                add!(*sum, s.load(x.add(i + k * S::LANES)));
            }
            i += 4 * S::LANES;
        }
        while i < n {
            let lanes = S::LANES.min(n - i);
            add!(sums[0], s.load_partial(x.add(i), lanes));
            i += lanes;
        }
        let total = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
        if total.is_finite() {
            return f64::from(total);
        }
        let wide = |i: usize| f64::from(*x.add(i));
        (0..n).map(|i| if squares { wide(i) * wide(i) } else { wide(i) }).sum()
    }
}

/// Divides a part of a row.
///
/// # Safety
/// The columns exist; nobody else writes them. `out` may be `x`.
#[inline(always)]
unsafe fn normalize<S: Simd>(
    s: S,
    (x, out): (Tensor, Tensor),
    (row, columns): (usize, std::ops::Range<usize>),
    norm: f64,
) {
    let mut values = [0f32; STRETCH];
    // Norms that, with their reciprocals, are normal f32 numbers.
    let usual = (1e-30..1e30).contains(&norm);
    let scale = s.splat((1.0 / norm) as f32);
    let mut at = columns.start;
    while at < columns.end {
        let n = STRETCH.min(columns.end - at);
        // SAFETY: the caller's promise; the buffer holds whole vectors.
        unsafe {
            row::read(s, x.dtype(), x.at(row, at), x.spec.stride(0), values.as_mut_ptr(), n);
            if usual {
                for i in (0..n).step_by(S::LANES) {
                    s.store(values.as_mut_ptr().add(i), s.mul(s.load(values.as_ptr().add(i)), scale));
                }
            } else {
                values[..n].iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
            }
            row::write(s, out.dtype(), values.as_ptr(), out.at(row, at), out.spec.stride(0), n);
        }
        at += n;
    }
}
