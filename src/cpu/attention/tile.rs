//! One tile of query rows against a range of keys.
//!
//! For each tile of keys: the scores `K Qᵀ`, then the weights in their place (see [`super::weights`]), then the weighted values.
//!
//! ```text
//! many rows:  S[key][row]   Oᵀ[value][row] = Vᵀ P     vectors along the rows; K and V are read number by number, as they lie
//! few rows:   S[row][key]   O[row][value]  = P V      vectors along d, dv and keys: see [`super::few`]
//! ```
//!
//! Of many rows, keys and values are decoded into buffers first, a tile at a time, and then serve all tiles of rows of a task: each key
//! is copied once for 256 rows. Tiles begin at multiples of [`KEYS`], wherever the rows' keys begin: what a row computes does not depend
//! on its neighbours. Where a diagonal or a window cuts through a tile, keys meet the rows [`STEP`] at a time, and only those vectors of
//! rows that see any of them (not under batch invariance: where the cuts fall depends on the rows of the tile).
//!
//! Where scores are no more than scaled dot products the maximum is taken of these, and the scale goes into the multiply-add before
//! the exponential, of base 2: some seventeen instructions a vector, beside 256 of the products at head dim 128.
//!
//! Measured, one thread, AVX-512, f32, causal, head dim 128, in turns with what was before (no cuts, exponentials of base e), three
//! times each on an else idle machine: 2048 rows of 32 heads by 8 kv heads 335 to 402 and now 275 to 365 ms, 54 to 70 % of the peak of
//! the same run; 512 rows by 32 kv heads 34 to 41 and now 31 ms, 39 to 41 %; 512 rows by 8 46 to 59 %, of head dim 64 43 to 46 %.
//!
//! Tried and lost: many rows reading f32 keys in place (rows a power of two apart evict each other); ranges of keys half as long;
//! a call for each row's conversion, which took twice as long as the conversion; subnormal weights (an assist of the processor each).

use std::ops::Range;

use super::{
    super::{
        kernel::Args,
        product::{Left, Rows, Start, product},
        row::{Row, padded},
        simd::Simd,
    },
    Job, Work,
    place::Place,
    weights::weights,
};
use crate::op::attention::Sizes;

/// Keys of a tile.
pub(super) const KEYS: usize = 64;
/// Keys that meet a tile's rows at once where not all rows see them.
const STEP: usize = 16;
/// Query rows of a tile at most.
pub(super) const ROWS: usize = 64;

/// A thread's scratch memory, in floats; d and dv padded to whole vectors. The first fields serve all tiles of a task, the others
/// are one tile's.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    /// `[KEYS][d]`
    pub(super) keys: *mut f32,
    /// `[KEYS][dv]`
    pub(super) values: *mut f32,
    /// `[KEYS][rows]` or, for few rows, `[rows][KEYS]`: scores, then weights.
    pub(super) scores: *mut f32,
    /// `[KEYS][rows]`: the mask.
    pub(super) mask: *mut f32,
    /// One row of d, dv or keys.
    pub(super) row: *mut f32,
    /// `[d][rows]` or, for few rows, `[rows][d]`
    pub(super) queries: *mut f32,
    /// `[dv][rows]` or, for few rows, `[rows][dv]`
    pub(super) out: *mut f32,
    /// `[rows]`: largest score so far.
    pub(super) largest: *mut f32,
    /// `[rows]`: sum of weights.
    pub(super) sum: *mut f32,
    /// `[rows]`: what older results are to be multiplied by.
    pub(super) decay: *mut f32,
    /// `[rows]`: alibi's slopes.
    pub(super) slopes: *mut f32,
    /// `[rows]`: positions, as i32.
    pub(super) positions: *mut f32,
}

/// A row's result but for the division: the weighted sum of values and the sum of weights, both relative to `exp(largest)`.
pub(super) struct Done {
    pub(super) largest: f32,
    pub(super) sum: f32,
    /// Padded.
    pub(super) values: *mut f32,
}

impl Buffers {
    /// Lengths of what tiles share, in the order of the fields.
    fn shared(job: &Job) -> [usize; 5] {
        let (rows, d, dv) = (padded(job.rows.min(ROWS)), padded(job.sizes.d), padded(job.sizes.dv));
        let mask = if job.op.mask.is_some() { KEYS * rows } else { 0 };
        [KEYS * d, KEYS * dv, KEYS * rows, mask, d.max(dv).max(KEYS)]
    }

    /// Lengths of what each tile has, in the order of the fields.
    fn own(job: &Job) -> [usize; 7] {
        let (rows, d, dv) = (padded(job.rows.min(ROWS)), padded(job.sizes.d), padded(job.sizes.dv));
        [rows * d, rows * dv, rows, rows, rows, rows, rows]
    }

    pub(super) fn floats(job: &Job) -> usize {
        let own: usize = Buffers::own(job).iter().sum();
        Buffers::shared(job).iter().sum::<usize>() + job.rows.div_ceil(ROWS).max(job.heads) * own
    }

    /// The buffers of tile `tile`, or of as many heads of few rows.
    ///
    /// # Safety
    /// `memory` is `Buffers::floats` long, and the task has such a tile.
    pub(super) unsafe fn new(job: &Job, memory: *mut f32, tile: usize) -> Buffers {
        let mut next = memory;
        let mut take = |n: usize| {
            let this = next;
            // SAFETY: the lengths add up to the whole.
            next = unsafe { next.add(n) };
            this
        };
        let [keys, values, scores, mask, row] = Buffers::shared(job).map(&mut take);
        let own = Buffers::own(job);
        take(tile * own.iter().sum::<usize>());
        let [queries, out, largest, sum, decay, slopes, positions] = own.map(take);
        Buffers { keys, values, scores, mask, row, queries, out, largest, sum, decay, slopes, positions }
    }

    /// Lays the values of a tile's rows out for [`done`](Self::done), where no other tile's keys are needed any more.
    ///
    /// # Safety
    /// `tiles` filled the buffers.
    #[inline(always)]
    pub(super) unsafe fn turn<S: Simd>(&mut self, s: S, job: &Job, few: bool, rows: usize) {
        let (wide, stride) = (padded(job.sizes.dv), rows.next_multiple_of(S::LANES));
        if few {
            return;
        }
        // SAFETY: `values` has as many rows as a tile at most, and all three lengths are whole vectors.
        unsafe {
            for r in (0..stride).step_by(S::LANES) {
                for i in (0..wide).step_by(S::LANES) {
                    s.transpose(self.out.add(i * stride + r), stride, self.values.add(r * wide + i), wide);
                }
            }
        }
        self.out = self.values;
    }

    /// Row `r`'s result.
    ///
    /// # Safety
    /// The buffers were turned, and row r was one of the tile's rows.
    #[inline(always)]
    pub(super) unsafe fn done(self, job: &Job, r: usize) -> Done {
        // SAFETY: inside the buffers.
        unsafe {
            let (largest, sum) = (*self.largest.add(r), *self.sum.add(r));
            Done { largest, sum, values: self.out.add(r * padded(job.sizes.dv)) }
        }
    }
}

impl Job {
    /// True where vectors along the rows would be mostly empty.
    #[inline(always)]
    pub(super) fn few<S: Simd>(&self, _s: S, rows: usize) -> bool {
        rows * 2 <= S::LANES && !self.invariant
    }

    /// The keys of a sequence that any of a tile's rows may see.
    pub(super) fn visible(&self, work: &Work, keys: Range<usize>) -> Range<usize> {
        let (first, last) = self.positions(work);
        let window = self.window();
        let (mut start, mut end) = (0, work.keys.len() as i64);
        if self.op.causal {
            end = end.min(last + 1);
        }
        if self.op.window > 0 {
            start = start.max(first - window + 1);
            end = end.min(last.saturating_add(window));
        }
        let end = usize::try_from(end).unwrap_or(0).min(keys.end);
        (start as usize).max(keys.start).min(end)..end
    }

    /// Where the first of these keys are to end: at the last that all rows see, or, where not all rows see the first, after a few.
    #[inline(always)]
    fn step<S: Simd>(&self, _s: S, work: &Work, keys: Range<usize>) -> usize {
        if self.invariant || work.rows <= S::LANES {
            return keys.end;
        }
        let (nearest, furthest) = self.positions(work);
        let (first, last) = (keys.start as i64, keys.end as i64);
        let behind = self.op.window > 0 && first <= furthest - self.window();
        let ahead = match (self.op.causal, self.op.window) {
            (true, _) => nearest + 1 - first,
            (false, 0) => last - first,
            (false, _) => nearest + self.window() - first,
        };
        let few = ahead < STEP as i64;
        keys.end.min(keys.start + if behind || few { STEP } else { ahead as usize })
    }

    /// The rows, in whole vectors, that see any of these keys.
    #[inline(always)]
    fn lanes<S: Simd>(&self, _s: S, work: &Work, keys: Range<usize>) -> Range<usize> {
        let all = work.rows.next_multiple_of(S::LANES);
        let base = work.position(0);
        // The first row at a position or beyond.
        let row = |position: i64| {
            let row = (position - base).saturating_mul(self.group as i64) - work.first as i64;
            (row.max(0) as usize).min(work.rows)
        };
        let (first, last, window) = (keys.start as i64, keys.end as i64 - 1, self.window());
        let start = match (self.op.causal, self.op.window) {
            (true, _) => row(first),
            (false, 0) => 0,
            (false, _) => row(first - window + 1),
        };
        let end = if self.op.window > 0 { row(last + window) } else { all };
        let end = end.next_multiple_of(S::LANES).min(all);
        (start - start % S::LANES).min(end)..end
    }

    /// The window, no further than distances go.
    pub(super) fn window(&self) -> i64 {
        self.op.window.min(1 << 30) as i64
    }

    /// Positions of a tile's first and last row.
    pub(super) fn positions(&self, work: &Work) -> (i64, i64) {
        (work.position(self.row(work, 0).0), work.position(self.row(work, work.rows - 1).0))
    }
}

/// Computes a task's tiles of many rows against those of the sequence's keys that lie in `keys`, which are read once for all of them.
///
/// # Safety
/// The operands are the operation's own, `memory` this call's alone and as long as its buffers.
#[inline(always)]
pub(super) unsafe fn tiles<S: Simd>(s: S, job: &Job, args: &Args, work: &Work, keys: Range<usize>, memory: *mut f32) {
    let Sizes { d, dv, .. } = job.sizes;
    let keys = job.visible(work, keys);
    let (k, v) = (args.of("k"), args.of("v"));
    // SAFETY: buffers are as long as their fields say, keys lie in the sequence.
    unsafe {
        for t in 0..work.tiles() {
            start(s, job, args, &work.tile(t), false, Buffers::new(job, memory, t));
        }
        let mut first = keys.start - keys.start % KEYS;
        while first < keys.end {
            let these = first.max(keys.start)..(first + KEYS).min(keys.end);
            first += KEYS;
            let place = Place::find(job, args, work, these.clone());
            let buffers = Buffers::new(job, memory, 0);
            let k = place.read(s, &k, d, buffers.keys);
            let v = place.read(s, &v, dv, buffers.values);
            for t in 0..work.tiles() {
                let part = work.tile(t);
                let seen = job.visible(&part, these.clone());
                let mut at = seen.start;
                while at < seen.end {
                    let end = job.step(s, &part, at..seen.end);
                    let skip = at - these.start;
                    let tile = Tile {
                        lanes: job.lanes(s, &part, at..end),
                        work: work.tile(t),
                        keys: at..end,
                        hidden: place.hidden >> skip & (u64::MAX >> (KEYS - (end - at))),
                    };
                    meet(s, job, args, &tile, k.from(skip), v.from(skip), Buffers::new(job, memory, t));
                    at = end;
                }
            }
        }
    }
}

/// Rows of a tile and the keys they meet.
pub(super) struct Tile {
    pub(super) work: Work,
    /// Numbers of the keys in their sequence.
    pub(super) keys: Range<usize>,
    /// Bit i: key i takes no part at all.
    pub(super) hidden: u64,
    /// Those of many rows, in whole vectors, that see any of the keys.
    pub(super) lanes: Range<usize>,
}

/// Many rows meet keys.
///
/// # Safety
/// The buffers are the tile's own, `k` and `v` its keys' rows.
#[inline(always)]
unsafe fn meet<S: Simd>(s: S, job: &Job, args: &Args, tile: &Tile, k: Rows, v: Rows, buffers: Buffers) {
    let Sizes { d, dv, .. } = job.sizes;
    let (count, first, lanes) = (tile.keys.len(), tile.lanes.start, tile.lanes.len());
    let stride = tile.work.rows.next_multiple_of(S::LANES);
    let Buffers { queries, scores, out, decay, .. } = buffers;
    let matrix = |pointer: *mut f32| Rows { pointer: pointer.wrapping_add(first), stride };
    // SAFETY: buffers are as long as their fields say, and have these lanes.
    unsafe {
        let left = Left { pointer: k.pointer, row: k.stride, column: 1 };
        product(s, (count, lanes, d), left, matrix(queries), matrix(scores), Start::Zero);
        weights(s, job, args, tile, buffers);
        let left = Left { pointer: v.pointer, row: 1, column: v.stride };
        product(s, (dv, lanes, count), left, matrix(scores), matrix(out), Start::Columns(decay.add(first)));
    }
}

/// Brings the queries in and empties the results.
///
/// # Safety
/// As for `tile`.
#[inline(always)]
pub(super) unsafe fn start<S: Simd>(s: S, job: &Job, args: &Args, work: &Work, few: bool, buffers: Buffers) {
    let Sizes { d, dv, heads, .. } = job.sizes;
    let Buffers { keys, queries, positions, slopes, largest, sum, out, .. } = buffers;
    let (q, alibi) = (args.of("q"), args.get("alibi"));
    let rows = work.rows.next_multiple_of(S::LANES);
    // The rows are turned from where the keys will be, which has as many rows as a tile at most.
    let (wide, plain) = (padded(d), if few { queries } else { keys });
    // SAFETY: inside the buffers.
    unsafe {
        out.write_bytes(0, rows * padded(dv));
        plain.write_bytes(0, rows * wide);
        for r in 0..rows {
            *largest.add(r) = f32::NEG_INFINITY;
            *sum.add(r) = 0.0;
            // Lanes beyond the rows do what the last row does, to no effect.
            let (i, h) = job.row(work, r.min(work.rows - 1));
            *positions.cast::<i32>().add(r) = work.position(i) as i32;
            *slopes.add(r) = alibi.map_or(0.0, |t| *t.pointer::<f32>().add(h * t.spec.stride(0)));
            if r < work.rows {
                Row::of(&q, (work.queries.start + i) * heads + h).load(s, d, plain.add(r * wide));
            }
        }
        if !few {
            for p in (0..wide).step_by(S::LANES) {
                for r in (0..rows).step_by(S::LANES) {
                    s.transpose(plain.add(r * wide + p), wide, queries.add(p * rows + r), rows);
                }
            }
        }
    }
}
