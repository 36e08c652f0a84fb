//! Drawing from logits. The `top_k` largest come sorted from `top_k.rs`; where all are kept nothing is sorted as a whole: the probabilities
//! are added up in bins by the upper bits of the logit, in descending order, and only the bins in which the
//! prefix ends and the draw falls are looked into.

use std::sync::Arc;

use super::{
    Device,
    kernel::{Args, Kernel, Tensor},
    pool::Pool,
    reduce::{STRETCH, largest, numbers},
    simd::{Isa, Simd, math, simd},
    top_k::{Candidate, Select, key},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Determinism, Features, Sample},
};

pub(super) fn plan(device: &Arc<Device>, op: &Sample) -> Result<Plans> {
    let op = *op;
    let kernel = Kernel::new(device, op, format_args!("sample-{}", op.logits.dtype()), Features::STRIDED)?;
    let kernel = kernel.determinism(Determinism::BatchInvariant);
    let (rows, n) = op.dims();
    if op.top_k > 0 && op.top_k < n && !op.temperature.is_zero() {
        let select = Select::new(rows, n, op.top_k);
        return kernel.scratch(select.scratch(device.info.threads)).plan(move |args: &Args, pool: &mut Pool| {
            let row = Row::of(args, &op);
            select.run(args, pool, args.of("logits"), |r, best| {
                // SAFETY: this task's own row.
                unsafe { row.put(r, row.certain(best[0]).unwrap_or_else(|| row.among(r, best))) }
            });
        });
    }
    // A row that is drawn needs bins, and room for the candidates of one: a place for each row, or each thread.
    let draws = n > 0 && !op.temperature.is_zero();
    let places = if draws { rows.min(device.info.threads) } else { 0 };
    let place = BINS * size_of::<f64>() + n * size_of::<Candidate>();
    kernel.scratch(place.saturating_mul(places)).plan(move |args: &Args, pool: &mut Pool| {
        let (row, logits) = (Row::of(args, &op), args.of("logits"));
        pool.run(rows, |r, thread| {
            // SAFETY: the row exists and is this task's alone.
            let drawn = match simd!(args.isa, s => unsafe { largest(s, logits, r) }) {
                None => -1,
                Some((v, index)) => row.certain(Candidate::new(v, index)).unwrap_or_else(|| {
                    // SAFETY: no two tasks have the same place at a time: 8-byte aligned bins, then candidates.
                    let (mass, room) = unsafe {
                        let at = args.scratch::<u8>().add(place * if places == rows { r } else { thread });
                        let room = at.add(BINS * size_of::<f64>()).cast();
                        (&mut *at.cast::<[f64; BINS]>(), std::slice::from_raw_parts_mut(room, n))
                    };
                    row.among_all(r, v, mass, room)
                }),
            };
            // SAFETY: as above.
            unsafe { row.put(r, drawn) }
        });
    })
}

/// Bins by sign, exponent and the upper bits of the mantissa: 8 in each octave.
const BINS: usize = 1 << (32 - SHIFT);
const SHIFT: u32 = 20;

/// What is the same for all rows of a launch.
struct Row<'a> {
    op: &'a Sample,
    logits: Tensor<'a>,
    out: Tensor<'a>,
    seed: [i32; 2],
    isa: Isa,
}

impl<'a> Row<'a> {
    fn of(args: &Args<'a>, op: &'a Sample) -> Row<'a> {
        let (seed, logits, out) = (args.of("seed"), args.of("logits"), args.of("out"));
        // SAFETY: the seed is two i32.
        let seed = [0, 1].map(|i| unsafe { *seed.at::<i32>(0, i) });
        Row { op, logits, out, seed, isa: args.isa }
    }

    /// # Safety
    /// The row exists, and nobody else writes its result.
    unsafe fn put(&self, row: usize, drawn: i32) {
        // SAFETY: `out` is one i32 for each row.
        unsafe { *self.out.at::<i32>(0, row) = drawn }
    }

    /// The index where nothing is drawn: greedy, or with a largest logit that no softmax is defined on.
    fn certain(&self, best: Candidate) -> Option<i32> {
        (self.op.temperature.is_zero() || !best.value().is_finite()).then_some(best.index() as i32)
    }

    /// Draws from candidates in descending order, all that are kept.
    fn among(&self, row: usize, sorted: &[Candidate]) -> i32 {
        let weights = Weights { max: sorted[0].value(), temperature: self.op.temperature.get() };
        let total: f64 = sorted.iter().map(|&c| weights.of(c)).sum();
        let mass = self.op.top_p.f64() * total;
        let (end, total) = match mass < total {
            true => weights.first(sorted, 0.0, |sum| sum >= mass),
            false => (sorted.len() - 1, total),
        };
        let target = f64::from(Sample::uniform(self.seed, row)) * total;
        let (at, _) = weights.first(&sorted[..=end], 0.0, |sum| sum > target);
        sorted[at].index() as i32
    }

    /// Draws from a whole row whose largest logit is `max`.
    fn among_all(&self, row: usize, max: f32, mass: &mut [f64; BINS], room: &mut [Candidate]) -> i32 {
        let weights = Weights { max, temperature: self.op.temperature.get() };
        mass.fill(0.0);
        // SAFETY: the row exists.
        simd!(self.isa, s => unsafe { weights.add_up(s, (self.logits, row), mass) });
        let total: f64 = mass.iter().rev().sum();
        let kept = self.op.top_p.f64() * total;
        // The bin and the place in it at which the prefix ends; by default behind everything.
        let mut last = (0, usize::MAX);
        let mut total = total;
        if kept < total {
            let (bin, before) = reaches(mass, |sum| sum >= kept);
            let (at, sum) = weights.first(self.candidates(row, bin, room), before, |sum| sum >= kept);
            (last, total) = ((bin, at), sum);
        }
        let target = f64::from(Sample::uniform(self.seed, row)) * total;
        let (mut bin, mut before) = reaches(mass, |sum| sum > target);
        if bin < last.0 {
            (bin, before) = (last.0, f64::NEG_INFINITY); // rounding led beyond the prefix: its end
        }
        let sorted = self.candidates(row, bin, room);
        let end = if bin == last.0 { sorted.len().min(last.1.saturating_add(1)) } else { sorted.len() };
        let (at, _) = weights.first(&sorted[..end], before, |sum| sum > target);
        sorted[at].index() as i32
    }

    /// The elements of a row that are in a bin, in order.
    fn candidates<'b>(&self, row: usize, bin: usize, room: &'b mut [Candidate]) -> &'b [Candidate] {
        // SAFETY: the row exists.
        let len = simd!(self.isa, s => unsafe { collect(s, (self.logits, row), bin, room) });
        room[..len].sort_unstable_by(|a, b| b.cmp(a));
        &room[..len]
    }
}

/// The first bin, from the top, at which the sum from there on satisfies, and the sum before it; else the last with anything in it.
fn reaches(mass: &[f64; BINS], enough: impl Fn(f64) -> bool) -> (usize, f64) {
    let (mut sum, mut last) = (0.0, (BINS - 1, 0.0));
    for (bin, &m) in mass.iter().enumerate().rev().filter(|m| *m.1 > 0.0) {
        last = (bin, sum);
        sum += m;
        if enough(sum) {
            break;
        }
    }
    last
}

/// Appends the elements of a bin to `room`; gives their number.
///
/// # Safety
/// The row exists, `room` has its length.
#[inline(always)]
unsafe fn collect<S: Simd>(s: S, (x, row): (Tensor, usize), bin: usize, room: &mut [Candidate]) -> usize {
    let (n, mut len, mut buffer) = (x.spec.dim(0), 0, [0f32; STRETCH]);
    for at in (0..n).step_by(STRETCH) {
        let part = STRETCH.min(n - at);
        // SAFETY: the caller's promise.
        let from = unsafe { numbers(s, &x, (row, at, part), &mut buffer) };
        for i in 0..part {
            // SAFETY: inside the stretch.
            let v = unsafe { *from.add(i) };
            if (key(v) >> SHIFT) as usize == bin {
                room[len] = Candidate::new(v, at + i);
                len += 1;
            }
        }
    }
    len
}

/// Probabilities up to a factor.
struct Weights {
    max: f32,
    temperature: f32,
}

impl Weights {
    fn of(&self, c: Candidate) -> f64 {
        (f64::from(c.value() - self.max) / f64::from(self.temperature)).exp()
    }

    /// The first place in the order at which the sum, begun at `sum`, satisfies, and that sum; else the last place that has any weight.
    fn first(&self, sorted: &[Candidate], mut sum: f64, enough: impl Fn(f64) -> bool) -> (usize, f64) {
        let mut last = (0, sum);
        for (i, &c) in sorted.iter().enumerate() {
            let weight = self.of(c);
            if weight > 0.0 {
                sum += weight;
                last = (i, sum);
                if enough(sum) {
                    break;
                }
            }
        }
        last
    }

    /// Adds the weights of a row to their bins.
    ///
    /// # Safety
    /// The row exists.
    #[inline(always)]
    unsafe fn add_up<S: Simd>(&self, s: S, (x, row): (Tensor, usize), mass: &mut [f64; BINS]) {
        let (max, temperature) = (s.splat(self.max), s.splat(self.temperature));
        let (n, mut buffer, mut weights) = (x.spec.dim(0), [0f32; STRETCH], [0f32; STRETCH]);
        for at in (0..n).step_by(STRETCH) {
            let part = STRETCH.min(n - at);
            // SAFETY: the caller's promise; both buffers hold whole vectors.
            unsafe {
                let from = numbers(s, &x, (row, at, part), &mut buffer);
                for i in (0..part).step_by(S::LANES) {
                    let v =
                        if i + S::LANES <= part { s.load(from.add(i)) } else { s.load_partial(from.add(i), part - i) };
                    let e = math::exp(s, s.div(s.sub(v, max), temperature));
                    s.store(weights.as_mut_ptr().add(i), e);
                }
                for i in 0..part {
                    mass[(key(*from.add(i)) >> SHIFT) as usize] += f64::from(weights[i]);
                }
            }
        }
    }
}
