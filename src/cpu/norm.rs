//! RMS and layer norm: a row comes from memory once, is summed on the way and finished from the nearest cache. Rows of f32 are computed on
//! where they lie; others, and ends of rows that fill no vector, go through a buffer of f32. Results that the cache does not hold are stored
//! past it ([`large`]).
//!
//! RMS norm with weight, 512 rows of 4096 f32, AVX-512, in turns with plain stores, best of many: one thread 0.70 to 0.62 ms, two 0.41 to
//! 0.31, which is 27 and 53 GB/s where a copy reached 28 and 51.
//!
//! What one pass saves (`cargo bench --bench ops -- fusions`), Zen 3, one run of 20 samples, 512 rows of 4096: a residual added first 1.49 to
//! 1.00 ms, the result as q8_0 1.57 to 1.18.

use std::sync::Arc;

use super::{
    Device,
    kernel::{Args, Kernel},
    pool::Pool,
    row::{PAD, Row, large, padded, task_elements},
    simd::{Simd, math, simd},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Determinism, Features, Norm, norm::NormKind},
};

/// Elements a task covers at least: a few microseconds of work.
const TASK: usize = 1 << 14;

pub(super) fn plan(device: &Arc<Device>, op: &Norm) -> Result<Plans> {
    let op = *op;
    let known =
        Features::STRIDED | Features::BIAS | Features::RESIDUAL | Features::SCALE | Features::GATE | Features::SUM;
    let kernel = Kernel::new(device, op, format_args!("norm-{}", op.x.dtype()), known)?;
    let (rows, n) = op.dims();
    let rows = if n == 0 { 0 } else { rows };
    let each = task_elements(TASK, &op.x, device.info.threads).div_ceil(n.max(1));
    let wide = padded(n);
    // A thread's buffers: the row, what is combined with it, weight, bias.
    let scratch = wide.saturating_mul(4 * size_of::<f32>()).saturating_mul(device.info.threads);
    kernel.determinism(Determinism::BatchInvariant).scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        pool.run(rows.div_ceil(each), |task, thread| {
            let rows = task * each..rows.min((task + 1) * each);
            // SAFETY: each thread has its own part of the scratch memory, and rows are written by one task.
            simd!(args.isa, s => unsafe { norm(s, &op, args, rows, args.scratch::<f32>().add(thread * 4 * wide)) })
        })
    })
}

/// # Safety
/// The rows exist and are this call's alone; `buffer` is four padded rows.
#[inline(always)]
unsafe fn norm<S: Simd>(s: S, op: &Norm, args: &Args, rows: std::ops::Range<usize>, buffer: *mut f32) {
    let (_, n) = op.dims();
    let (x, out) = (args.of("x"), args.of("out"));
    let (residual, gate, summed) = (args.get("residual"), args.get("gate"), args.get("sum"));
    let (out_large, sum_large) = (large(args, "out"), large(args, "sum"));
    let wide = padded(n);
    // SAFETY: all loops go over whole vectors: of padded buffers, whose elements from n on stay 0, or of rows that they fill.
    unsafe {
        let (own, other) = (buffer, buffer.add(wide));
        let list = |name: &str| args.get(name).map(|list| Row::of(&list, 0));
        let weight = list("weight").map(|row| row.read(s, n, buffer.add(2 * wide)));
        let bias = list("bias").map(|row| row.read(s, n, buffer.add(3 * wide)));
        for r in rows {
            let mut row = Row::of(&x, r).read(s, n, own);
            let past = summed.as_ref().and_then(|summed| Row::of(summed, r).past(s, n, sum_large));
            if let Some(residual) = &residual {
                let residual = Row::of(residual, r).read(s, n, other);
                // What is normalized is the unrounded sum, so it is in the buffer unless `sum` is f32.
                let to = match &summed {
                    Some(summed) if gate.is_none() && past.is_none() => Row::of(summed, r).place(s, n, own),
                    _ => own,
                };
                let factor = s.splat(op.factor.get());
                for i in (0..n).step_by(S::LANES) {
                    let v = s.fma(factor, s.load(row.add(i)), s.load(residual.add(i)));
                    s.store(to.add(i), v);
                    if let Some(past) = past {
                        s.stream(past.add(i), v);
                    }
                }
                row = to;
            }
            if let Some(summed) = &summed {
                let summed = Row::of(summed, r);
                if row != summed.pointer().cast() && (past.is_none() || residual.is_none()) {
                    summed.store(s, n, row);
                }
            }
            if let Some(gate) = &gate {
                let gate = Row::of(gate, r).read(s, n, other);
                for i in (0..n).step_by(S::LANES) {
                    s.store(own.add(i), s.mul(s.load(row.add(i)), math::silu(s, s.load(gate.add(i)))));
                }
                row = own;
            }
            let mean = if op.kind == NormKind::Layer { sum::<S, false>(s, row, n, 0.0) / n as f32 } else { 0.0 };
            let square = sum::<S, true>(s, row, n, mean) / n as f32;
            let inverse = s.splat(1.0 / (square + op.eps.get()).sqrt());
            let (out, mean) = (Row::of(&out, r), s.splat(mean));
            let past = out.past(s, n, out_large);
            let to = out.place(s, n, own);
            // One loop for each form: weights are what models have.
            macro_rules! each {
                ($i:ident, $y:ident => $e:expr) => {
                    if let Some(to) = past {
                        for $i in (0..n).step_by(S::LANES) {
                            let $y = s.mul(s.sub(s.load(row.add($i)), mean), inverse);
                            s.stream(to.add($i), $e);
                        }
                    } else {
                        for $i in (0..n).step_by(S::LANES) {
                            let $y = s.mul(s.sub(s.load(row.add($i)), mean), inverse);
                            s.store(to.add($i), $e);
                        }
                    }
                };
            }
            match (weight, bias) {
                (None, None) => each!(i, y => y),
                (Some(w), None) => each!(i, y => s.mul(y, s.load(w.add(i)))),
                (None, Some(b)) => each!(i, y => s.add(y, s.load(b.add(i)))),
                (Some(w), Some(b)) => each!(i, y => s.fma(y, s.load(w.add(i)), s.load(b.add(i)))),
            }
            out.put(s, n, to);
        }
        s.fence();
    }
}

/// The sum of a row, or of the squares of what its elements differ from `mean`, in eight chains.
///
/// # Safety
/// `row` is `n` elements, and padded with zeros to whole vectors.
#[inline(always)]
unsafe fn sum<S: Simd, const SQUARES: bool>(s: S, row: *const f32, n: usize, mean: f32) -> f32 {
    const CHAINS: usize = 8;
    let mut sums = [s.zero(); CHAINS];
    let (mut i, mean) = (0, s.splat(mean));
    macro_rules! add {
        ($sum:expr, $x:expr) => {
            if SQUARES {
                let x = s.sub($x, mean);
                $sum = s.fma(x, x, $sum);
            } else {
                $sum = s.add($x, $sum);
            }
        };
    }
    // SAFETY: inside the padded row; past its end nothing is read.
    unsafe {
        while i + CHAINS * S::LANES <= n {
            for (j, sum) in sums.iter_mut().enumerate() {
                add!(*sum, s.load(row.add(i + j * S::LANES)));
            }
            i += CHAINS * S::LANES;
        }
        while i + S::LANES <= n {
            add!(sums[0], s.load(row.add(i)));
            i += S::LANES;
        }
        if i < n {
            // Lanes beyond the row count as the mean.
            let mut last = [0f32; PAD];
            s.store(last.as_mut_ptr(), mean);
            s.store_partial(last.as_mut_ptr(), s.load(row.add(i)), n - i);
            add!(sums[1], s.load(last.as_ptr()));
        }
    }
    let (a, b) = (s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
    let (c, d) = (s.add(sums[4], sums[5]), s.add(sums[6], sums[7]));
    s.sum(s.add(s.add(a, b), s.add(c, d)))
}
