//! Short causal convolution: a task goes through time with a stretch of channels, the last rows of its input in a ring in the cache.

use std::sync::Arc;

use super::{
    Device,
    kernel::{Args, Kernel},
    pool::Pool,
    row::Row,
    simd::{Simd, math, simd},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Conv1d, Determinism, Features},
};

/// Channels of a task.
const WIDE: usize = 256;

pub(super) fn plan(device: &Arc<Device>, op: &Conv1d) -> Result<Plans> {
    let op = *op;
    let known = Features::STRIDED | Features::BIAS | Features::ACTIVATION | Features::STATE;
    let kernel = Kernel::new(device, op, format_args!("conv1d-{}", op.x.dtype()), known)?;
    let (batch, t, channels, taps) = op.dims();
    let parts = channels.div_ceil(WIDE);
    let tasks = if t == 0 { 0 } else { batch * parts };
    // A thread's buffers: the taps' weights, as many rows of input, bias, output.
    let each = (2 * taps + 2) * WIDE;
    let scratch = each.saturating_mul(size_of::<f32>()).saturating_mul(device.info.threads);
    kernel.determinism(Determinism::BatchInvariant).scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        pool.run(tasks, |task, thread| {
            let place = (task / parts, task % parts * WIDE);
            // SAFETY: each thread has its own buffers; a stretch of channels of a sequence is one task's.
            simd!(args.isa, s => unsafe { convolve(s, &op, args, place, args.scratch::<f32>().add(thread * each)) })
        })
    })
}

/// # Safety
/// The sequence's channels from `first` on are this call's alone; `buffer` is as `plan` says.
#[inline(always)]
unsafe fn convolve<S: Simd>(s: S, op: &Conv1d, args: &Args, (batch, first): (usize, usize), buffer: *mut f32) {
    let (_, t, channels, taps) = op.dims();
    let n = WIDE.min(channels - first);
    let (x, w, out, bias, state) = (args.of("x"), args.of("w"), args.of("out"), args.get("bias"), args.get("state"));
    // SAFETY: stretches lie inside their rows, vectors inside the buffers.
    unsafe {
        let (weights, ring) = (buffer, buffer.add(taps * WIDE));
        let (offset, y) = (ring.add(taps * WIDE), ring.add((taps + 1) * WIDE));
        offset.write_bytes(0, WIDE);
        if let Some(bias) = &bias {
            Row::part(bias, 0, first).load(s, n, offset);
        }
        // Time counts from the oldest row of the state; row i lies at i % taps of the ring.
        ring.write_bytes(0, taps * WIDE);
        for i in 0..taps {
            Row::down(&w, first, i).load(s, n, weights.add(i * WIDE));
            if let Some(state) = state.as_ref().filter(|_| i + 1 < taps) {
                Row::part(state, batch * (taps - 1) + i, first).load(s, n, ring.add(i * WIDE));
            }
        }
        for time in 0..t {
            Row::part(&x, batch * t + time, first).load(s, n, ring.add((time + taps - 1) % taps * WIDE));
            for c in (0..n).step_by(S::LANES) {
                let mut sum = s.load(offset.add(c));
                for i in 0..taps {
                    let row = ring.add((time + i) % taps * WIDE);
                    sum = s.fma(s.load(weights.add(i * WIDE + c)), s.load(row.add(c)), sum);
                }
                s.store(y.add(c), math::activate(s, op.act, sum));
            }
            Row::part(&out, batch * t + time, first).store(s, n, y);
        }
        if let Some(state) = &state {
            for i in 0..taps - 1 {
                Row::part(state, batch * (taps - 1) + i, first).store(s, n, ring.add((t + i) % taps * WIDE));
            }
        }
    }
}
