//! One tile of query rows against a range of keys.
//!
//! For each tile of keys: the scores `K Qᵀ`, then the weights in their place (see [`super::weights`]), then the weighted values.
//!
//! ```text
//! many rows:  S[key][row]   Oᵀ[value][row] = Vᵀ P     vectors along the rows; K and V are read number by number, as they lie
//! few rows:   S[row][key]   O[row][value]  = P V      vectors along d, dv and keys; as many dot products at a time as there
//!                                                     are lanes, whose sums are then taken together
//! ```
//!
//! Keys and values are decoded into buffers first, a tile at a time, and then serve all tiles of rows of a task: each key is copied
//! once for 256 rows. Tiles begin at multiples of [`KEYS`], wherever the rows' keys begin: what a row computes does not depend on
//! its neighbours.
//!
//! Measured, one thread, AVX-512, head dim 128: 512 rows, causal: 63 to 86 GFLOP/s in f32 with 32 kv heads, 96 to 115 in bf16
//! with 8; 2048 rows in f32 with 8: 96 to 122 (of about 190 that the two products reach alone). One row and 4096 keys, 8 kv heads:
//! 2.18 to 1.7 ms in f32, 2.50 to 1.79 in f16, 2.78 to 1.99 in q8_0.
//!
//! Tried and lost: many rows reading f32 keys in place (rows a power of two apart evict each other); ranges of keys half as long;
//! a call for each row's conversion, which took twice as long as the conversion; subnormal weights (an assist of the processor each).

use std::ops::Range;

use super::{
    super::{
        kernel::Args,
        product::{Left, Rows, Start, product},
        row::{PAD, Row, padded},
        simd::Simd,
    },
    Job, Work,
    place::Place,
    weights::{weights, weights_by_row},
};
use crate::op::attention::Sizes;

/// Keys of a tile.
pub(super) const KEYS: usize = 64;
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
    queries: *mut f32,
    /// `[dv][rows]` or, for few rows, `[rows][dv]`
    out: *mut f32,
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
        Buffers::shared(job).iter().sum::<usize>() + job.rows.div_ceil(ROWS) * own
    }

    /// Tile `tile`'s buffers.
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
    fn visible(&self, work: &Work, keys: Range<usize>) -> Range<usize> {
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

    /// The window, no further than distances go.
    pub(super) fn window(&self) -> i64 {
        self.op.window.min(1 << 30) as i64
    }

    /// Positions of a tile's first and last row.
    pub(super) fn positions(&self, work: &Work) -> (i64, i64) {
        (work.position(self.row(work, 0).0), work.position(self.row(work, work.rows - 1).0))
    }
}

/// Computes a task's tiles against those of the sequence's keys that lie in `keys`, which are read once for all of them.
///
/// # Safety
/// The operands are the operation's own, `memory` this call's alone and as long as its buffers.
#[inline(always)]
pub(super) unsafe fn tiles<S: Simd>(s: S, job: &Job, args: &Args, work: &Work, keys: Range<usize>, memory: *mut f32) {
    let Sizes { d, dv, .. } = job.sizes;
    let few = job.few(s, work.rows);
    let keys = job.visible(work, keys);
    let (k, v) = (args.of("k"), args.of("v"));
    // SAFETY: buffers are as long as their fields say, keys lie in the sequence.
    unsafe {
        for t in 0..work.tiles() {
            start(s, job, args, &work.tile(t), few, Buffers::new(job, memory, t));
        }
        let mut first = keys.start - keys.start % KEYS;
        while first < keys.end {
            let these = first.max(keys.start)..(first + KEYS).min(keys.end);
            first += KEYS;
            let place = Place::find(job, args, work, these.clone());
            let buffers = Buffers::new(job, memory, 0);
            let k = place.read(s, &k, d, few, buffers.keys);
            let v = place.read(s, &v, dv, few, buffers.values);
            for t in 0..work.tiles() {
                let part = work.tile(t);
                let seen = job.visible(&part, these.clone());
                if seen.is_empty() {
                    continue;
                }
                let skip = seen.start - these.start;
                let (k, v) = (k.from(skip), v.from(skip));
                let tile = Tile { work: part, keys: seen, hidden: place.hidden >> skip, few };
                meet(s, job, args, &tile, k, v, Buffers::new(job, memory, t));
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
    few: bool,
}

/// # Safety
/// `k` and `v` are the tile's keys' rows, the buffers its own.
#[inline(always)]
unsafe fn meet<S: Simd>(s: S, job: &Job, args: &Args, tile: &Tile, k: Rows, v: Rows, buffers: Buffers) {
    let Sizes { d, dv, .. } = job.sizes;
    let (count, own) = (tile.keys.len(), tile.work.rows);
    let rows = own.next_multiple_of(S::LANES);
    let Buffers { queries, scores, out, decay, .. } = buffers;
    let matrix = |pointer: *mut f32| Rows { pointer, stride: rows };
    // SAFETY: buffers are as long as their fields say.
    unsafe {
        if tile.few {
            dots(s, (count, own, d), k, queries, scores);
        } else {
            let left = Left { pointer: k.pointer, row: k.stride, column: 1 };
            product(s, (count, rows, d), left, matrix(queries), matrix(scores), Start::Zero);
        }
        if tile.few {
            weights_by_row(s, job, args, tile, buffers);
            let left = Left { pointer: scores, row: KEYS, column: 1 };
            let to = Rows { pointer: out, stride: padded(dv) };
            product(s, (own, dv.next_multiple_of(S::LANES), count), left, v, to, Start::RowFactors(decay));
        } else {
            weights(s, job, args, tile, buffers);
            let left = Left { pointer: v.pointer, row: 1, column: v.stride };
            product(s, (dv, rows, count), left, matrix(scores), matrix(out), Start::Columns(decay));
        }
    }
}

/// Brings the queries in and empties the results.
///
/// # Safety
/// As for `tile`.
#[inline(always)]
unsafe fn start<S: Simd>(s: S, job: &Job, args: &Args, work: &Work, few: bool, buffers: Buffers) {
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

/// `scores[row][key] = k[key] . queries[row]`, [`KEYS`] a row, for whole blocks of keys: what is beyond the last is its copy.
///
/// # Safety
/// Keys and queries are padded with zeros to whole vectors.
#[inline(always)]
unsafe fn dots<S: Simd>(s: S, (keys, rows, d): (usize, usize, usize), k: Rows, queries: *const f32, scores: *mut f32) {
    let mut r = 0;
    while r < rows {
        // SAFETY: r stays below rows.
        unsafe {
            let (q, to) = (queries.add(r * padded(d)), scores.add(r * KEYS));
            // As many sums as a vector has lanes.
            r += match (S::LANES, rows - r) {
                (16, 4..) => dot_rows::<S, 4, 4>(s, (keys, d), k, q, to),
                (16, 2..) => dot_rows::<S, 8, 2>(s, (keys, d), k, q, to),
                (16, _) => dot_rows::<S, 16, 1>(s, (keys, d), k, q, to),
                (8, 2..) => dot_rows::<S, 4, 2>(s, (keys, d), k, q, to),
                (8, _) => dot_rows::<S, 8, 1>(s, (keys, d), k, q, to),
                _ => dot_rows::<S, 1, 1>(s, (keys, d), k, q, to),
            }
        }
    }
}

/// R rows, K keys at a time.
///
/// # Safety
/// As for `dots`.
#[inline(always)]
unsafe fn dot_rows<S: Simd, const K: usize, const R: usize>(
    s: S,
    (keys, d): (usize, usize),
    k: Rows,
    queries: *const f32,
    scores: *mut f32,
) -> usize {
    for first in (0..keys).step_by(K) {
        let mut sums = [[s.zero(); K]; R];
        // SAFETY: the caller's promise; KEYS is a multiple of K.
        unsafe {
            let row: [*const f32; K] =
                std::array::from_fn(|i| k.pointer.add((first + i).min(keys - 1) * k.stride).cast_const());
            for p in (0..d).step_by(S::LANES) {
                let mut right = [s.zero(); R];
                for (r, right) in right.iter_mut().enumerate() {
                    *right = s.load(queries.add(r * padded(d) + p));
                }
                for (i, row) in row.iter().enumerate() {
                    let left = s.load(row.add(p));
                    for (sums, &right) in sums.iter_mut().zip(&right) {
                        sums[i] = s.fma(left, right, sums[i]);
                    }
                }
            }
            if K * R == S::LANES {
                let mut all = [0f32; PAD];
                s.sums(sums.as_ptr().cast(), all.as_mut_ptr());
                for r in 0..R {
                    scores.add(r * KEYS + first).copy_from_nonoverlapping(all.as_ptr().add(r * K), K);
                }
            } else {
                for (r, sums) in sums.iter().enumerate() {
                    for (i, &sum) in sums.iter().enumerate() {
                        *scores.add(r * KEYS + first + i) = s.sum(sum);
                    }
                }
            }
        }
    }
    R
}
