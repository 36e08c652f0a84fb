//! Few steps, as in decoding: a task holds some rows of one head's state in the cache and goes through time. Where the state is f32 side by
//! side it is changed where it lies: read and written once.

use super::{
    super::{
        Device,
        kernel::{Args, Kernel, Tensor},
        pool::Pool,
        row::{PAD, Row, padded},
        simd::{Simd, math, simd},
    },
    number, time_step,
};
use crate::{backend::Plans, error::Result, op::SsmScan};

/// Rows of the state (of p) of a task.
const ROWS: usize = 32;

pub(super) fn plan(kernel: Kernel, device: &Device, op: SsmScan) -> Result<Plans> {
    let (batch, t, heads, p, _, n) = op.dims();
    let parts = p.div_ceil(ROWS);
    let tasks = if t == 0 { 0 } else { batch * heads * parts };
    // A thread's buffers: state, b, c, x, out, dt.
    let each = padded(n).saturating_mul(ROWS + 2).saturating_add(2 * ROWS + PAD);
    let scratch = each.saturating_mul(size_of::<f32>()).saturating_mul(device.info.threads);
    kernel.scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        pool.run(tasks, |task, thread| {
            let place = (task / parts, task % parts * ROWS);
            // SAFETY: each thread has its own buffers; rows of a head's state are one task's.
            simd!(args.isa, s => unsafe { scan(s, &op, args, place, args.scratch::<f32>().add(thread * each)) })
        })
    })
}

/// # Safety
/// Rows `first ..` of the state of a head (counted over all sequences) are this call's alone; `buffer` is as `plan` says.
#[inline(always)]
unsafe fn scan<S: Simd>(s: S, op: &SsmScan, args: &Args, (head, first): (usize, usize), buffer: *mut f32) {
    let (t, heads, p, groups, n) = (op.x.dim(2), op.x.dim(1), op.x.dim(0), op.b.dim(1), op.b.dim(0));
    let (batch, h, count, wide) = (head / heads, head % heads, ROWS.min(p - first), padded(n));
    let group = h / (heads / groups);
    let (x, dt, out, state) = (args.of("x"), args.of("dt"), args.of("out"), args.get("state"));
    let (b, c) = (args.of("b"), args.of("c"));
    let (a, skip, bias) = (number(args.get("a"), h), number(args.get("d"), h), number(args.get("dt_bias"), h));
    // SAFETY: whole vectors of padded buffers, whose elements from n on stay 0, or of the state where it lies.
    unsafe {
        let (own, b_row, c_row) = (buffer, buffer.add(ROWS * wide), buffer.add((ROWS + 1) * wide));
        let x_row = buffer.add((ROWS + 2) * wide);
        let (y, step) = (x_row.add(ROWS), x_row.add(2 * ROWS));
        let lies = |state: &Tensor| Row::of(state, 0).direct().is_some() && n.is_multiple_of(S::LANES);
        let in_place = state.filter(lies);
        let elsewhere = if in_place.is_some() { None } else { state };
        let (held, pitch) = match &in_place {
            Some(state) => (state.at::<f32>(head * p + first, 0), state.spec.stride(1)),
            None => (own, wide),
        };
        if in_place.is_none() {
            own.write_bytes(0, count * wide);
        }
        if let Some(state) = &elsewhere {
            for i in 0..count {
                Row::of(state, head * p + first + i).load(s, n, own.add(i * wide));
            }
        }
        for time in 0..t {
            let row = batch * t + time;
            Row::part(&dt, row, h).load(s, 1, step);
            let delta = time_step(s, op, s.load(step), bias);
            let decay = math::exp(s, s.mul(delta, s.splat(a)));
            s.store(step, delta);
            let delta = *step;
            s.store(step, decay);
            Row::of(&b, row * groups + group).load(s, n, b_row);
            Row::of(&c, row * groups + group).load(s, n, c_row);
            Row::part(&x, row * heads + h, first).load(s, count, x_row);
            let step = Step { decay: *step, delta, skip, b: b_row, c: c_row, n, pitch };
            let mut i = 0;
            while i < count {
                let (held, x, y) = (held.add(i * pitch), x_row.add(i), y.add(i));
                if i + 4 <= count {
                    step.rows::<S, 4>(s, held, x, y);
                    i += 4;
                } else {
                    step.rows::<S, 1>(s, held, x, y);
                    i += 1;
                }
            }
            Row::part(&out, row * heads + h, first).store(s, count, y);
        }
        if let Some(state) = &elsewhere {
            for i in 0..count {
                Row::of(state, head * p + first + i).store(s, n, own.add(i * wide));
            }
        }
    }
}

/// What one step of time does to every row of a head's state.
struct Step {
    decay: f32,
    delta: f32,
    skip: f32,
    b: *const f32,
    c: *const f32,
    n: usize,
    pitch: usize,
}

impl Step {
    /// # Safety
    /// `held` is R rows of n, whole vectors, `pitch` apart, b and c one each; `x` and `y` hold R numbers.
    #[inline(always)]
    unsafe fn rows<S: Simd, const R: usize>(&self, s: S, held: *mut f32, x: *const f32, y: *mut f32) {
        let (mut sums, mut inputs) = ([s.zero(); R], [s.zero(); R]);
        // SAFETY: whole vectors of the rows.
        unsafe {
            for (r, input) in inputs.iter_mut().enumerate() {
                *input = s.splat(self.delta * *x.add(r));
            }
            let decay = s.splat(self.decay);
            for i in (0..self.n).step_by(S::LANES) {
                let (b, c) = (s.load(self.b.add(i)), s.load(self.c.add(i)));
                for (r, (sum, &input)) in sums.iter_mut().zip(&inputs).enumerate() {
                    let at = held.add(r * self.pitch + i);
                    let now = s.fma(decay, s.load(at), s.mul(input, b));
                    s.store(at, now);
                    *sum = s.fma(c, now, *sum);
                }
            }
            for (r, &sum) in sums.iter().enumerate() {
                *y.add(r) = s.sum(sum) + self.skip * *x.add(r);
            }
        }
    }
}
