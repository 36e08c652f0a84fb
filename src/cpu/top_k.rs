//! The largest of each row. A row is looked through for numbers above the k-th largest so far, groups of vectors at a time; those few
//! are kept, and thinned out by a selection whenever their buffer is full. A long row is split into parts, always at
//! the same places, whose winners meet in a second round.

use std::{ops::Range, sync::Arc};

use super::{
    Device,
    kernel::{Args, Kernel, Tensor},
    pool::Pool,
    reduce::{STRETCH, numbers},
    simd::{Simd, row, simd},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Determinism, Features, TopK},
};

pub(super) fn plan(device: &Arc<Device>, op: &TopK) -> Result<Plans> {
    let op = *op;
    let known = Features::STRIDED | Features::SOFTMAX;
    let kernel = Kernel::new(device, op, format_args!("top_k-{}", op.x.dtype()), known)?;
    let (rows, n, k) = op.dims();
    let select = Select::new(rows, n, k);
    let scratch = select.scratch(device.info.threads);
    kernel.determinism(Determinism::BatchInvariant).scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        let (x, values, indices) = (args.of("x"), args.of("values"), args.of("indices"));
        select.run(args, pool, x, |row, best| {
            for (i, &c) in best.iter().enumerate() {
                // SAFETY: indices are i32, k in each row, and fit.
                unsafe { *indices.at::<i32>(row, i) = c.index() as i32 };
            }
            // SAFETY: the row exists and is this task's alone.
            simd!(args.isa, s => unsafe { write(s, (x, values), row, best, op.softmax) });
        });
    })
}

/// An element's place in the order: the larger comes first, of equals the one with the lower index. No two are equal.
///
/// ```text
/// bit  63                           32 31          0
///      number, as an unsigned integer  ! index
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate(u64);

impl Candidate {
    /// Behind every element.
    const NONE: Candidate = Candidate(0);

    #[inline(always)]
    pub(super) fn new(v: f32, index: usize) -> Candidate {
        Candidate((key(v) as u64) << 32 | !(index as u32) as u64)
    }

    pub(super) fn index(self) -> usize {
        !(self.0 as u32) as usize
    }

    /// The number; +0 for -0.
    pub(super) fn value(self) -> f32 {
        let key = (self.0 >> 32) as u32;
        f32::from_bits(if key >> 31 == 1 { key & 0x7fff_ffff } else { !key })
    }
}

/// An integer for each number, in their order: NaN above all, -0 and +0 the same.
#[inline(always)]
pub(super) fn key(v: f32) -> u32 {
    let bits = (v + 0.0).to_bits();
    match bits >> 31 {
        _ if v.is_nan() => u32::MAX,
        0 => bits | 0x8000_0000,
        _ => !bits,
    }
}

/// Elements of a task, and of a part of a row.
const PART: usize = 1 << 14;

/// How the `k` largest of each of `rows` rows of `n` are found.
#[derive(Clone, Copy)]
pub(super) struct Select {
    rows: usize,
    n: usize,
    k: usize,
    parts: usize,
}

impl Select {
    pub(super) fn new(rows: usize, n: usize, k: usize) -> Select {
        // Parts that keep much of what they look at are no use.
        let parts = if k <= PART / 16 { n.div_ceil(PART).max(1) } else { 1 };
        Select { rows, n, k, parts }
    }

    /// Candidates that a search keeps at most: room for as many again as it needs, so that thinning them out pays.
    fn room(&self) -> usize {
        self.n.min(self.k.saturating_mul(2).saturating_add(64))
    }

    /// Candidates of all parts.
    fn winners(&self) -> usize {
        if self.parts > 1 { self.rows.saturating_mul(self.parts).saturating_mul(self.k) } else { 0 }
    }

    /// Bytes of scratch memory: the parts' winners, then each thread's search.
    pub(super) fn scratch(&self, threads: usize) -> usize {
        let candidates = self.winners().saturating_add(self.room().saturating_mul(threads));
        candidates.saturating_mul(size_of::<Candidate>())
    }

    /// Calls `each(row, best)` for every row, with the `k` largest in order, from several threads. The kernel has at least
    /// `scratch` bytes, from the beginning of its scratch memory on.
    pub(super) fn run(&self, args: &Args, pool: &mut Pool, x: Tensor, each: impl Fn(usize, &mut [Candidate]) + Sync) {
        let &Select { rows, n, k, parts } = self;
        let rows_per_task = (PART / n.max(1)).max(1);
        let tasks = if k == 0 { 0 } else { rows.div_ceil(rows_per_task) * parts };
        pool.run(tasks, |task, thread| {
            let (first, part) = (task / parts * rows_per_task, task % parts);
            let columns = if parts == 1 { 0..n } else { part * PART..(part * PART + PART).min(n) };
            for r in first..(first + rows_per_task).min(rows) {
                // SAFETY: the threads' searches lie one after the other behind the winners; rows and columns exist.
                let kept = unsafe {
                    let room = args.scratch::<Candidate>().add(self.winners() + thread * self.room());
                    let room = std::slice::from_raw_parts_mut(room, self.room());
                    let kept = simd!(args.isa, s => search(s, x, r, columns.clone(), k, room));
                    &mut room[..kept]
                };
                let best = first_of(kept, k);
                if parts == 1 {
                    best.sort_unstable_by(|a, b| b.cmp(a));
                    each(r, best);
                    continue;
                }
                // SAFETY: each part of each row has k places.
                let winners = unsafe {
                    std::slice::from_raw_parts_mut(args.scratch::<Candidate>().add((r * parts + part) * k), k)
                };
                let (filled, rest) = winners.split_at_mut(best.len());
                filled.copy_from_slice(best);
                rest.fill(Candidate::NONE);
            }
        });
        if parts > 1 {
            pool.run(if k == 0 { 0 } else { rows }, |r, _| {
                // SAFETY: the parts of a row lie one after the other, all written above.
                let all = unsafe {
                    std::slice::from_raw_parts_mut(args.scratch::<Candidate>().add(r * parts * k), parts * k)
                };
                let best = first_of(all, k);
                best.sort_unstable_by(|a, b| b.cmp(a));
                each(r, best);
            });
        }
    }
}

/// The first `k` in the order, moved to the front in any order.
fn first_of(all: &mut [Candidate], k: usize) -> &mut [Candidate] {
    if k == 0 || all.len() <= k {
        return all;
    }
    all.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
    &mut all[..k]
}

/// Keeps the `k > 0` largest elements of a row's columns and maybe some more; gives their number.
///
/// # Safety
/// The row and the columns exist; `kept` has room for all of them, or for more than `k`.
#[inline(always)]
unsafe fn search<S: Simd>(
    s: S,
    x: Tensor,
    row: usize,
    columns: Range<usize>,
    k: usize,
    kept: &mut [Candidate],
) -> usize {
    /// Elements looked at together.
    const GROUP: usize = 64;
    let mut buffer = [0f32; STRETCH];
    let (mut len, mut least, mut bar) = (0, Candidate::NONE, None);
    let mut at = columns.start;
    while at < columns.end {
        let n = STRETCH.min(columns.end - at);
        // SAFETY: the caller's promise.
        let from = unsafe { numbers(s, &x, (row, at, n), &mut buffer) };
        for group in (0..n).step_by(GROUP) {
            let end = n.min(group + GROUP);
            // SAFETY: the group lies in the stretch.
            if bar.is_some_and(|bar| unsafe { !any_above(s, from.add(group), end - group, bar) }) {
                continue;
            }
            for i in group..end {
                // SAFETY: as above.
                let v = unsafe { *from.add(i) };
                if bar.is_some_and(|bar| v <= bar) {
                    continue; // an equal number was there before
                }
                let c = Candidate::new(v, at + i);
                if c <= least {
                    continue;
                }
                if len == kept.len() {
                    least = first_of(kept, k)[k - 1];
                    bar = Some(least.value());
                    len = k;
                    if c <= least {
                        continue;
                    }
                }
                kept[len] = c;
                len += 1;
            }
        }
        at += n;
    }
    len
}

/// False where no number is above `bar` or NaN.
///
/// # Safety
/// `x` is readable for `n`.
#[inline(always)]
unsafe fn any_above<S: Simd>(s: S, x: *const f32, n: usize, bar: f32) -> bool {
    let (bar, one) = (s.splat(bar), s.splat(1.0));
    let (mut found, mut i) = (s.zero(), 0);
    while i < n {
        // SAFETY: the caller's promise. Zeros beyond the end are at worst found in vain.
        let v = unsafe { if i + S::LANES <= n { s.load(x.add(i)) } else { s.load_partial(x.add(i), n - i) } };
        found = s.select(s.lt(bar, v), one, found);
        found = s.select(s.eq(v, v), found, one);
        i += S::LANES;
    }
    s.max_lane(found) > 0.0
}

/// Copies the chosen numbers to a row of `values`, or their softmax.
///
/// # Safety
/// The row exists and nobody else writes it; `best` names its elements.
#[inline(always)]
unsafe fn write<S: Simd>(s: S, (x, values): (Tensor, Tensor), row: usize, best: &[Candidate], softmax: bool) {
    let first = best.first().map_or(0.0, |c| c.value());
    // All -inf: the exponentials are 0 whatever is subtracted.
    let shift = if first == f32::NEG_INFINITY { 0.0 } else { first };
    let exp = |c: &Candidate| f64::from(c.value() - shift).exp();
    let sum: f64 = if softmax { best.iter().map(exp).sum() } else { 0.0 };
    let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    let mut buffer = [0f32; STRETCH];
    for (part, chosen) in best.chunks(STRETCH).enumerate() {
        // SAFETY: the caller's promise; chunks fit the buffer.
        unsafe {
            for (v, c) in buffer.iter_mut().zip(chosen) {
                match softmax {
                    true => *v = (exp(c) * inverse) as f32,
                    false => row::read(s, x.dtype(), x.at(row, c.index()), 1, v, 1), // keeps the sign of zero
                }
            }
            let (to, stride) = (values.at(row, part * STRETCH), values.spec.stride(0));
            row::write(s, values.dtype(), buffer.as_ptr(), to, stride, chosen.len());
        }
    }
}
