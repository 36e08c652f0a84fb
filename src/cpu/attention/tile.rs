//! One tile of query rows against a range of keys.
//!
//! Scores are kept key by key, a vector holding one key's scores of neighbouring query rows: maxima, sums and masks then need no
//! work across lanes. For each tile of keys, `S[key][row] = K Qᵀ`, then the weights in their place, then one of two products:
//!
//! ```text
//! many rows:  Oᵀ[value][row] = Vᵀ P     vectors along the rows; K and V are read number by number, as they lie
//! few rows:   O[row][value]  = Pᵀ V     vectors along d and dv; K Qᵀ by dot products
//! ```
//!
//! Keys and values are decoded into buffers first, a tile at a time, and then serve all tiles of rows of a task: [`super::TILES`] of them
//! quarter the copying, which took more time than the products where every query head has its own keys. Tiles begin at multiples of
//! [`KEYS`], wherever the rows' keys begin: what a row computes does not depend on its neighbours.

use std::ops::Range;

use super::{
    super::{
        kernel::{Args, Tensor},
        product::{Left, Rows, Start, product},
        row::{Row, padded},
        simd::{Simd, math},
    },
    Job, Work,
    place::Place,
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
    keys: *mut f32,
    /// `[KEYS][dv]`
    values: *mut f32,
    /// `[KEYS][rows]`: scores, then weights.
    scores: *mut f32,
    /// `[KEYS][rows]`: the mask.
    mask: *mut f32,
    /// One row of d, dv or keys.
    pub(super) row: *mut f32,
    /// `[d][rows]` or, for few rows, `[rows][d]`
    queries: *mut f32,
    /// `[dv][rows]` or, for few rows, `[rows][dv]`
    out: *mut f32,
    /// `[rows]`: largest score so far.
    largest: *mut f32,
    /// `[rows]`: sum of weights.
    sum: *mut f32,
    /// `[rows]`: what older results are to be multiplied by.
    decay: *mut f32,
    /// `[rows]`: alibi's slopes.
    slopes: *mut f32,
    /// `[rows]`: positions, as i32.
    positions: *mut f32,
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
    fn window(&self) -> i64 {
        self.op.window.min(1 << 30) as i64
    }

    /// Positions of a tile's first and last row.
    fn positions(&self, work: &Work) -> (i64, i64) {
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
struct Tile {
    work: Work,
    /// Numbers of the keys in their sequence.
    keys: Range<usize>,
    /// Bit i: key i takes no part at all.
    hidden: u64,
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
        weights(s, job, args, tile, buffers);
        if tile.few {
            let left = Left { pointer: scores, row: 1, column: rows };
            let to = Rows { pointer: out, stride: padded(dv) };
            product(s, (own, dv.next_multiple_of(S::LANES), count), left, v, to, Start::RowFactors(decay));
        } else {
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

/// `scores[key][row] = k[key] . queries[row]`, for up to as many rows as lanes; zeros in the other lanes.
///
/// # Safety
/// Keys and queries are padded with zeros to whole vectors.
#[inline(always)]
unsafe fn dots<S: Simd>(s: S, (keys, rows, d): (usize, usize, usize), k: Rows, queries: *const f32, scores: *mut f32) {
    let mut i = 0;
    // SAFETY: i stays below keys, r below rows.
    unsafe {
        scores.write_bytes(0, keys * S::LANES);
        while i < keys {
            let whole = i + 4 <= keys;
            let mut r = 0;
            while r < rows {
                let k = Rows { pointer: k.pointer.add(i * k.stride), ..k };
                let (q, to) = (queries.add(r * padded(d)), scores.add(i * S::LANES + r));
                match (whole, r + 2 <= rows) {
                    (true, true) => dot_block::<S, 4, 2>(s, d, k, q, to),
                    (true, false) => dot_block::<S, 4, 1>(s, d, k, q, to),
                    (false, true) => dot_block::<S, 1, 2>(s, d, k, q, to),
                    (false, false) => dot_block::<S, 1, 1>(s, d, k, q, to),
                }
                r += if r + 2 <= rows { 2 } else { 1 };
            }
            i += if whole { 4 } else { 1 };
        }
    }
}

/// # Safety
/// As for `dots`, with K keys and R rows.
#[inline(always)]
unsafe fn dot_block<S: Simd, const K: usize, const R: usize>(s: S, d: usize, k: Rows, q: *const f32, to: *mut f32) {
    let mut sums = [[s.zero(); R]; K];
    // SAFETY: the caller's promise.
    unsafe {
        let mut p = 0;
        while p < d {
            let mut right = [s.zero(); R];
            for (r, right) in right.iter_mut().enumerate() {
                *right = s.load(q.add(r * padded(d) + p));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let left = s.load(k.pointer.add(i * k.stride + p));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = s.fma(left, right, *sum);
                }
            }
            p += S::LANES;
        }
        for (i, sums) in sums.iter().enumerate() {
            for (r, &sum) in sums.iter().enumerate() {
                *to.add(i * S::LANES + r) = s.sum(sum);
            }
        }
    }
}

/// Turns a tile's dot products into weights, and brings the rows' maxima and sums up to date.
///
/// # Safety
/// As for `tile`; the dot products are there.
#[inline(always)]
unsafe fn weights<S: Simd>(s: S, job: &Job, args: &Args, tile: &Tile, buffers: Buffers) {
    let op = &job.op;
    let Buffers { scores, mask, largest, sum, decay, slopes, positions, .. } = buffers;
    let (count, first) = (tile.keys.len(), tile.keys.start as i64);
    let rows = tile.work.rows.next_multiple_of(S::LANES);
    let (nearest, furthest) = job.positions(&tile.work);
    let (last, window) = (first + count as i64 - 1, job.window());
    // Does any row of the tile not see one of its keys?
    let too_new = op.causal && last > nearest;
    let too_far = op.window > 0 && (furthest - first >= window || last - nearest >= window);
    let nothing = s.splat(f32::NEG_INFINITY);
    let (scale, alibi) = (s.splat(job.op.score_scale()), op.alibi.is_some());
    let (cap, inverse_cap) = (op.softcap.get(), s.splat(1.0 / op.softcap.get()));
    // SAFETY: whole vectors inside the buffers.
    unsafe {
        if let Some(t) = args.get("mask") {
            read_mask(s, job, &t, tile, buffers);
        }
        for lane in (0..rows).step_by(S::LANES) {
            let before = s.load(largest.add(lane));
            let mut now = before;
            let position = load_i(s, positions.add(lane).cast());
            let slope = s.load(slopes.add(lane));
            for i in 0..count {
                let at = scores.add(i * rows + lane);
                let mut score = s.mul(scale, s.load(at));
                if cap != 0.0 {
                    score = s.mul(s.splat(cap), math::tanh(s, s.mul(score, inverse_cap)));
                }
                let distance = s.sub_i(position, s.splat_i((first + i as i64) as i32));
                if alibi {
                    score = s.sub(score, s.mul(slope, s.float(distance)));
                }
                if op.mask.is_some() {
                    let added = s.load(mask.add(i * rows + lane));
                    score = s.select(s.eq(added, nothing), nothing, s.add(score, added));
                }
                if too_new || too_far {
                    // Negative where the key is out of sight.
                    let mut sight = s.splat_i(0);
                    if op.causal {
                        sight = s.or(sight, distance);
                    }
                    if too_far {
                        let reach = s.splat_i(window as i32 - 1);
                        sight = s.or(sight, s.or(s.sub_i(reach, distance), s.add_i(reach, distance)));
                    }
                    score = s.select(s.lt(s.float(sight), s.zero()), nothing, score);
                }
                if tile.hidden >> i & 1 == 1 {
                    score = nothing;
                }
                s.store(at, score);
                now = s.max(score, now); // NaN is left to the sum
            }
            // Rows that have seen nothing yet: every weight is 0 whatever is subtracted.
            let shift = s.select(s.eq(now, nothing), s.zero(), now);
            let factor = math::exp(s, s.sub(before, shift));
            let mut total = s.mul(s.load(sum.add(lane)), factor);
            for i in 0..count {
                let at = scores.add(i * rows + lane);
                let weight = math::exp_flushed(s, s.sub(s.load(at), shift));
                total = s.add(total, weight);
                s.store(at, weight);
            }
            s.store(largest.add(lane), now);
            s.store(sum.add(lane), total);
            s.store(decay.add(lane), factor);
        }
    }
}

/// # Safety
/// `p` holds a vector of i32.
#[inline(always)]
unsafe fn load_i<S: Simd>(s: S, p: *const f32) -> S::I {
    // SAFETY: the caller's promise; only the bits are moved.
    s.bits(unsafe { s.load(p) })
}

/// The additive mask of a tile, turned to lie as the scores do.
///
/// # Safety
/// As for `tile`.
#[inline(always)]
unsafe fn read_mask<S: Simd>(s: S, job: &Job, mask: &Tensor, tile: &Tile, buffers: Buffers) {
    let Tile { work, keys, .. } = tile;
    let rows = work.rows.next_multiple_of(S::LANES);
    let (of_heads, of_batch) = (mask.spec.dim(2), mask.spec.dim(3));
    for r in 0..rows {
        let (i, h) = job.row(work, r.min(work.rows - 1));
        let matrix = if of_batch > 1 { work.batch } else { 0 } * of_heads + if of_heads > 1 { h } else { 0 };
        // SAFETY: the mask has this row and these columns; the buffers hold them.
        unsafe {
            let from = Row::part(mask, matrix * job.sizes.q_len + i, keys.start);
            from.load(s, keys.len(), buffers.row);
            for key in 0..keys.len() {
                *buffers.mask.add(key * rows + r) = *buffers.row.add(key);
            }
        }
    }
}
