//! RMS and layer norm: a row is brought into the cache as f32 once, and everything is done to it there.

use std::sync::Arc;

use super::{
    Device,
    kernel::{Args, Kernel},
    pool::Pool,
    row::{Row, padded},
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
    let each = TASK.div_ceil(n.max(1));
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
    let (weight, bias) = (args.get("weight"), args.get("bias"));
    let wide = padded(n);
    // SAFETY: all loops go over whole vectors of padded buffers, whose elements from n on stay 0.
    unsafe {
        let (row, other, w, b) = (buffer, buffer.add(wide), buffer.add(2 * wide), buffer.add(3 * wide));
        if let Some(weight) = &weight {
            Row::of(weight, 0).load(s, n, w);
        }
        if let Some(bias) = &bias {
            Row::of(bias, 0).load(s, n, b);
        }
        for r in rows {
            Row::of(&x, r).load(s, n, row);
            if let Some(residual) = &residual {
                Row::of(residual, r).load(s, n, other);
                let factor = s.splat(op.factor.get());
                for i in (0..n).step_by(S::LANES) {
                    s.store(row.add(i), s.fma(factor, s.load(row.add(i)), s.load(other.add(i))));
                }
            }
            if let Some(summed) = &summed {
                Row::of(summed, r).store(s, n, row);
            }
            if let Some(gate) = &gate {
                Row::of(gate, r).load(s, n, other);
                for i in (0..n).step_by(S::LANES) {
                    s.store(row.add(i), s.mul(s.load(row.add(i)), math::silu(s, s.load(other.add(i)))));
                }
            }
            if op.kind == NormKind::Layer {
                centre(s, row, n);
            }
            let mean = sum::<S, true>(s, row, n) / n as f32;
            let inverse = s.splat(1.0 / (mean + op.eps.get()).sqrt());
            for i in (0..n).step_by(S::LANES) {
                let mut y = s.mul(s.load(row.add(i)), inverse);
                if weight.is_some() {
                    y = s.mul(y, s.load(w.add(i)));
                }
                if bias.is_some() {
                    y = s.add(y, s.load(b.add(i)));
                }
                s.store(row.add(i), y);
            }
            Row::of(&out, r).store(s, n, row);
        }
    }
}

/// Subtracts the mean.
///
/// # Safety
/// `row` is padded with zeros, and they are left so.
#[inline(always)]
unsafe fn centre<S: Simd>(s: S, row: *mut f32, n: usize) {
    let mut i = 0;
    // SAFETY: inside the padded row.
    unsafe {
        let mean = s.splat(sum::<S, false>(s, row, n) / n as f32);
        while i + S::LANES <= n {
            s.store(row.add(i), s.sub(s.load(row.add(i)), mean));
            i += S::LANES;
        }
        if i < n {
            s.store_partial(row.add(i), s.sub(s.load(row.add(i)), mean), n - i);
        }
    }
}

/// The sum of a row, or of its squares, in four chains.
///
/// # Safety
/// `row` is padded with zeros.
#[inline(always)]
unsafe fn sum<S: Simd, const SQUARES: bool>(s: S, row: *const f32, n: usize) -> f32 {
    let mut sums = [s.zero(); 4];
    let mut i = 0;
    // SAFETY: inside the padded row; past its end nothing is read.
    unsafe {
        while i + 4 * S::LANES <= n {
            for (j, sum) in sums.iter_mut().enumerate() {
                let x = s.load(row.add(i + j * S::LANES));
                *sum = if SQUARES { s.fma(x, x, *sum) } else { s.add(x, *sum) };
            }
            i += 4 * S::LANES;
        }
        while i < n {
            let x = s.load(row.add(i));
            sums[0] = if SQUARES { s.fma(x, x, sums[0]) } else { s.add(x, sums[0]) };
            i += S::LANES;
        }
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}
