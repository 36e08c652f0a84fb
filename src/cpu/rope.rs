//! Rotary embedding: the angles of a token once, then head by head in the cache.
//!
//! Angles are kept in turns, so that their reduction is exact: position times frequency in f64, of which the fraction goes on
//! in f32. Sine and cosine follow from the nearest quarter turn and two short series.
//!
//! Written to the cache at once in place of `kv_append` after it, 512 tokens of 8 heads of 128 to f16, Zen 3: 0.38 to 0.32 ms.

use std::sync::Arc;

use super::{
    Device,
    kernel::{Args, Kernel},
    kv_append::{TASKS, slot},
    pool::Pool,
    row::{Row, padded},
    simd::{Simd, simd},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Determinism, Features, Rope, kv_append::cache_rows, rope::RopeStyle},
};

pub(super) fn plan(device: &Arc<Device>, op: &Rope) -> Result<Plans> {
    let op = *op;
    let known = Features::STRIDED | Features::PARTIAL | Features::ROPE_SCALING | Features::APPEND | Features::PAGED;
    let kernel = Kernel::new(device, op, format_args!("rope-{}", op.x.dtype()), known)?;
    let (tokens, heads, d) = (op.x.dim(2), op.x.dim(1), op.x.dim(0));
    let tasks = if heads == 0 || d == 0 { 0 } else { tokens.min(TASKS) };
    // Turns per position.
    let frequencies: Vec<f64> = op.frequencies().iter().map(|f| f / std::f64::consts::TAU).collect();
    let buffers = Buffers::floats(frequencies.len(), d);
    let scratch = buffers.saturating_mul(size_of::<f32>()).saturating_mul(device.info.threads);
    kernel.determinism(Determinism::BatchInvariant).scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        let (slots, rows) = (args.get("slots"), op.cache.as_ref().map_or(0, cache_rows));
        pool.run(tasks, |task, thread| {
            // SAFETY: each thread has its own part of the scratch memory.
            let buffers = unsafe { Buffers::new(args.scratch::<f32>().add(thread * buffers), frequencies.len()) };
            for t in 0..tokens {
                // Of two tokens with the same slot the later one wins: both are the same task's.
                let slot = slots.as_ref().and_then(|slots| slot(slots, t, rows));
                if slot.unwrap_or(t) % tasks == task {
                    // SAFETY: the token and its slot exist, and are this task's alone.
                    simd!(args.isa, s => unsafe { token(s, &op, args, &frequencies, t, slot, buffers) })
                }
            }
        })
    })
}

/// A thread's scratch memory.
#[derive(Clone, Copy)]
struct Buffers {
    sin: *mut f32,
    cos: *mut f32,
    row: *mut f32,
}

impl Buffers {
    fn floats(pairs: usize, d: usize) -> usize {
        padded(pairs).saturating_mul(2).saturating_add(padded(d))
    }

    /// # Safety
    /// `memory` is `Buffers::floats(pairs, ..)` long.
    unsafe fn new(memory: *mut f32, pairs: usize) -> Buffers {
        let wide = padded(pairs);
        // SAFETY: the caller's promise.
        unsafe { Buffers { sin: memory, cos: memory.add(wide), row: memory.add(2 * wide) } }
    }
}

/// # Safety
/// Token and slot exist and are this call's alone, the buffers are this thread's.
#[inline(always)]
unsafe fn token<S: Simd>(
    s: S,
    op: &Rope,
    args: &Args,
    frequencies: &[f64],
    t: usize,
    slot: Option<usize>,
    Buffers { sin, cos, row }: Buffers,
) {
    let (x, positions) = (args.of("x"), args.of("positions"));
    let (heads, d, pairs) = (op.x.dim(1), op.x.dim(0), frequencies.len());
    // SAFETY: positions are i32, factors f32 for each pair; buffers are padded.
    unsafe {
        let position = *positions.pointer::<i32>().add(t * positions.spec.stride(0)) as f64;
        if let Some(factors) = args.get("factors") {
            for (i, f) in frequencies.iter().enumerate() {
                let turns = position * f / *factors.pointer::<f32>().add(i * factors.spec.stride(0)) as f64;
                *sin.add(i) = (turns - turns.round_ties_even()) as f32;
            }
        } else {
            for (i, f) in frequencies.iter().enumerate() {
                let turns = position * f;
                *sin.add(i) = (turns - turns.round_ties_even()) as f32;
            }
        }
        sin.add(pairs).write_bytes(0, padded(pairs) - pairs);
        let amplitude = s.splat(op.amplitude() as f32);
        for i in (0..pairs).step_by(S::LANES) {
            let (sine, cosine) = sin_cos(s, s.load(sin.add(i)));
            s.store(sin.add(i), s.mul(amplitude, sine));
            s.store(cos.add(i), s.mul(amplitude, cosine));
        }
        let (sin, cos) = (std::slice::from_raw_parts(sin, pairs), std::slice::from_raw_parts(cos, pairs));
        for h in 0..heads {
            let from = Row::of(&x, t * heads + h);
            from.load(s, d, row);
            rotate(op.style, std::slice::from_raw_parts_mut(row, 2 * pairs), sin, cos);
            from.store(s, 2 * pairs, row);
            if let (Some(cache), Some(slot)) = (args.get("cache"), slot) {
                Row::of(&cache, slot * heads + h).store(s, d, row);
            }
        }
    }
}

/// Plain loops: the compiler's own vectors are right for them.
#[inline(always)]
fn rotate(style: RopeStyle, row: &mut [f32], sin: &[f32], cos: &[f32]) {
    let angles = sin.iter().zip(cos);
    match style {
        RopeStyle::Adjacent => {
            for ([a, b], (sin, cos)) in row.as_chunks_mut().0.iter_mut().zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
        _ => {
            let (a, b) = row.split_at_mut(sin.len());
            for ((a, b), (sin, cos)) in a.iter_mut().zip(b).zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
    }
}

/// Sine and cosine of an angle in turns, at most half a turn either way: within 2 ulp of 1.
#[inline(always)]
fn sin_cos<S: Simd>(s: S, turns: S::F) -> (S::F, S::F) {
    let nearest = s.round(s.mul(turns, s.splat(4.0)));
    let a = s.mul(s.fma(nearest, s.splat(-0.25), turns), s.splat(std::f32::consts::TAU));
    let u = s.mul(a, a);
    // Taylor's series on [-pi/4, pi/4]: the first terms left out are below 2e-9 and 3e-8.
    let sine = s.fma(u, s.splat(1.0 / 362880.0), s.splat(-1.0 / 5040.0));
    let sine = s.fma(s.fma(sine, u, s.splat(1.0 / 120.0)), u, s.splat(-1.0 / 6.0));
    let sine = s.fma(s.mul(sine, u), a, a);
    let cosine = s.fma(u, s.splat(1.0 / 40320.0), s.splat(-1.0 / 720.0));
    let cosine = s.fma(s.fma(cosine, u, s.splat(1.0 / 24.0)), u, s.splat(-0.5));
    let cosine = s.fma(cosine, u, s.splat(1.0));
    // Quarter 1 is (cos, -sin), 2 (-sin, -cos), 3 (-cos, sin).
    let quarter = s.to_i(nearest);
    let odd = s.eq(s.float(s.and(quarter, s.splat_i(1))), s.splat(1.0));
    let (sine, cosine) = (s.select(odd, cosine, sine), s.select(odd, sine, cosine));
    let sign = s.shl::<30>(s.and(quarter, s.splat_i(2)));
    let cosine_sign = s.shl::<30>(s.and(s.add_i(quarter, s.splat_i(1)), s.splat_i(2)));
    (s.of_bits(s.xor(s.bits(sine), sign)), s.of_bits(s.xor(s.bits(cosine), cosine_sign)))
}
