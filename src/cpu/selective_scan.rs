//! Mamba-1's scan: a task goes through time with a stretch of channels, vectors along them; their states lie in the cache, turned so that
//! nothing has to be summed across lanes.

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
    op::{Determinism, Features, SelectiveScan},
};

/// Channels of a task.
const WIDE: usize = 64;

pub(super) fn plan(device: &Arc<Device>, op: &SelectiveScan) -> Result<Plans> {
    let op = *op;
    let known =
        Features::STRIDED | Features::STATE | Features::SKIP | Features::BIAS | Features::GATE | Features::SOFTPLUS;
    let kernel = Kernel::new(device, op, format_args!("selective_scan-{}", op.x.dtype()), known)?;
    let parts = op.x.dim(0).div_ceil(WIDE);
    let tasks = if op.x.dim(1) == 0 { 0 } else { op.x.dim(2) * parts };
    let n = op.a.dim(0);
    // A thread's buffers: a, state; x, dt, z, dt_bias, d; b, c.
    let each = n.saturating_mul(2 * WIDE).saturating_add(5 * WIDE).saturating_add(2 * padded(n));
    let scratch = each.saturating_mul(size_of::<f32>()).saturating_mul(device.info.threads);
    kernel.determinism(Determinism::BatchInvariant).scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        pool.run(tasks, |task, thread| {
            let place = (task / parts, task % parts * WIDE);
            // SAFETY: each thread has its own buffers; a stretch of channels of a sequence is one task's.
            simd!(args.isa, s => unsafe { scan(s, &op, args, place, args.scratch::<f32>().add(thread * each)) })
        })
    })
}

/// # Safety
/// The sequence's channels from `first` on are this call's alone; `buffer` is as `plan` says.
#[inline(always)]
unsafe fn scan<S: Simd>(s: S, op: &SelectiveScan, args: &Args, (batch, first): (usize, usize), buffer: *mut f32) {
    let (t, channels, n) = (op.x.dim(1), op.x.dim(0), op.a.dim(0));
    let count = WIDE.min(channels - first);
    let (x, dt, out, z, state) = (args.of("x"), args.of("dt"), args.of("out"), args.get("z"), args.get("state"));
    let (a, b, c) = (args.of("a"), args.of("b"), args.of("c"));
    // SAFETY: stretches lie inside their rows, vectors inside the buffers.
    unsafe {
        let (decays, held, x_row) = (buffer, buffer.add(n * WIDE), buffer.add(2 * n * WIDE));
        let (delta, gate, bias, skip) =
            (x_row.add(WIDE), x_row.add(2 * WIDE), x_row.add(3 * WIDE), x_row.add(4 * WIDE));
        let (b_row, c_row) = (x_row.add(5 * WIDE), x_row.add(5 * WIDE + padded(n)));
        buffer.write_bytes(0, (2 * n + 5) * WIDE);
        for i in 0..n {
            Row::down(&a, first, i).load(s, count, decays.add(i * WIDE));
            if let Some(state) = &state {
                Row::down(state, batch * channels + first, i).load(s, count, held.add(i * WIDE));
            }
        }
        if let Some(dt_bias) = args.get("dt_bias") {
            Row::part(&dt_bias, 0, first).load(s, count, bias);
        }
        if let Some(d) = args.get("d") {
            Row::part(&d, 0, first).load(s, count, skip);
        }
        for time in 0..t {
            let row = batch * t + time;
            Row::part(&x, row, first).load(s, count, x_row);
            Row::part(&dt, row, first).load(s, count, delta);
            Row::of(&b, row).load(s, n, b_row);
            Row::of(&c, row).load(s, n, c_row);
            if let Some(z) = &z {
                Row::part(z, row, first).load(s, count, gate);
            }
            for lane in (0..count).step_by(S::LANES) {
                let x = s.load(x_row.add(lane));
                let mut delta = s.add(s.load(delta.add(lane)), s.load(bias.add(lane)));
                if op.softplus {
                    delta = math::softplus(s, delta);
                }
                let input = s.mul(delta, x);
                let mut sum = s.mul(s.load(skip.add(lane)), x);
                for i in 0..n {
                    let decay = math::exp(s, s.mul(delta, s.load(decays.add(i * WIDE + lane))));
                    let at = held.add(i * WIDE + lane);
                    let now = s.fma(decay, s.load(at), s.mul(input, s.splat(*b_row.add(i))));
                    s.store(at, now);
                    sum = s.fma(s.splat(*c_row.add(i)), now, sum);
                }
                if z.is_some() {
                    sum = s.mul(sum, math::silu(s, s.load(gate.add(lane))));
                }
                s.store(x_row.add(lane), sum);
            }
            Row::part(&out, row, first).store(s, count, x_row);
        }
        if let Some(state) = &state {
            for i in 0..n {
                Row::down(state, batch * channels + first, i).store(s, count, held.add(i * WIDE));
            }
        }
    }
}
