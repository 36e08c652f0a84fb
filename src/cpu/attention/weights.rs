//! Dot products to weights, and the rows' maxima and sums.

use super::{
    super::{
        row::Row,
        simd::{Simd, math},
    },
    Job,
    tile::{Buffers, KEYS, Tile},
};
use crate::{
    cpu::{
        kernel::{Args, Tensor},
        row::PAD,
    },
    op::Attention,
};

/// What becomes of a dot product.
struct Rule<'a> {
    op: &'a Attention,
    window: i64,
    /// Some row of the tile does not see one of its keys: those too new for it, those too far from it.
    too_new: bool,
    too_far: bool,
    /// Scores are dot products times the scale.
    plain: bool,
}

impl Rule<'_> {
    fn new<'a>(job: &'a Job, tile: &Tile) -> Rule<'a> {
        let (op, window, first, last) = (&job.op, job.window(), tile.keys.start as i64, tile.keys.end as i64 - 1);
        let (nearest, furthest) = job.positions(&tile.work);
        let too_far = op.window > 0 && (furthest - first >= window || last - nearest >= window);
        let too_new = op.causal && last > nearest;
        let bare = op.softcap.is_zero() && op.alibi.is_none() && op.mask.is_none();
        Rule { op, window, too_new, too_far, plain: bare && !too_new && !too_far }
    }

    /// `distance` is how far the key lies behind the query, `added` the mask's entries.
    #[inline(always)]
    fn score<S: Simd>(&self, s: S, dot: S::F, distance: S::I, slope: S::F, added: Option<S::F>) -> S::F {
        let (op, nothing) = (self.op, s.splat(f32::NEG_INFINITY));
        let cap = op.softcap.get();
        let mut score = s.mul(s.splat(op.score_scale()), dot);
        if cap != 0.0 {
            score = s.mul(s.splat(cap), math::tanh(s, s.mul(score, s.splat(1.0 / cap))));
        }
        if op.alibi.is_some() {
            score = s.sub(score, s.mul(slope, s.float(distance)));
        }
        if let Some(added) = added {
            score = s.select(s.eq(added, nothing), nothing, s.add(score, added));
        }
        if self.too_new || self.too_far {
            // Negative where the key is out of sight.
            let mut sight = s.splat_i(0);
            if op.causal {
                sight = s.or(sight, distance);
            }
            if self.too_far {
                let reach = s.splat_i(self.window as i32 - 1);
                sight = s.or(sight, s.or(s.sub_i(reach, distance), s.add_i(reach, distance)));
            }
            score = s.select(s.lt(s.float(sight), s.zero()), nothing, score);
        }
        score
    }
}

/// Turns a tile's dot products into weights, and brings the rows' maxima and sums up to date.
///
/// # Safety
/// As for `meet`; the dot products are there.
#[inline(always)]
pub(super) unsafe fn weights<S: Simd>(s: S, job: &Job, args: &Args, tile: &Tile, buffers: Buffers) {
    let Buffers { scores, mask, largest, slopes, positions, .. } = buffers;
    let (count, first, rule) = (tile.keys.len(), tile.keys.start as i64, Rule::new(job, tile));
    let rows = tile.work.rows.next_multiple_of(S::LANES);
    let (nothing, masked) = (s.splat(f32::NEG_INFINITY), job.op.mask.is_some());
    // SAFETY: whole vectors inside the buffers.
    unsafe {
        if let Some(t) = args.get("mask") {
            for r in tile.lanes.clone() {
                mask_row(s, job, &t, tile, r.min(tile.work.rows - 1), buffers.row);
                for key in 0..count {
                    *mask.add(key * rows + r) = *buffers.row.add(key);
                }
            }
        }
        for lane in tile.lanes.clone().step_by(S::LANES) {
            let before = s.load(largest.add(lane));
            let mut now = before;
            if rule.plain && tile.hidden == 0 {
                // Only the maximum needs the scores now: the weights' exponents are made of the dot products.
                let (scale, mut other, mut i) = (s.splat(rule.op.score_scale()), now, 0);
                while i + 2 <= count {
                    now = s.max(s.mul(s.load(scores.add(i * rows + lane)), scale), now); // NaN is left to the sum
                    other = s.max(s.mul(s.load(scores.add((i + 1) * rows + lane)), scale), other);
                    i += 2;
                }
                if i < count {
                    now = s.max(s.mul(s.load(scores.add(i * rows + lane)), scale), now);
                }
                now = s.max(now, other);
                exponents(s, (count, rows), scores.add(lane), (before, now), scale, buffers, lane);
                continue;
            }
            let position = load_i(s, positions.add(lane).cast());
            let slope = s.load(slopes.add(lane));
            for i in 0..count {
                let at = scores.add(i * rows + lane);
                let distance = s.sub_i(position, s.splat_i((first + i as i64) as i32));
                let added = if masked { Some(s.load(mask.add(i * rows + lane))) } else { None };
                let mut score = rule.score(s, s.load(at), distance, slope, added);
                if tile.hidden >> i & 1 == 1 {
                    score = nothing;
                }
                s.store(at, score);
                now = s.max(score, now); // NaN is left to the sum
            }
            exponents(s, (count, rows), scores.add(lane), (before, now), s.splat(1.0), buffers, lane);
        }
    }
}

/// Turns a vector of rows' scores, once they are multiplied by `scale`, into weights.
///
/// # Safety
/// As for `weights`; `scores` holds `count` vectors, `rows` apart.
#[inline(always)]
unsafe fn exponents<S: Simd>(
    s: S,
    (count, rows): (usize, usize),
    scores: *mut f32,
    (before, now): (S::F, S::F),
    scale: S::F,
    buffers: Buffers,
    lane: usize,
) {
    let Buffers { largest, sum, decay, .. } = buffers;
    let log2_e = s.splat(std::f32::consts::LOG2_E);
    // Rows that have seen nothing yet: every weight is 0 whatever is subtracted.
    let shift = s.select(s.eq(now, s.splat(f32::NEG_INFINITY)), s.zero(), now);
    let factor = math::exp2_flushed(s, s.mul(s.sub(before, shift), log2_e));
    // Subtracted before the factor of the base goes in: a model's mask may be the least f32, which no factor may carry to infinity.
    let (less, mut total) = (s.neg(shift), s.zero());
    // SAFETY: the caller's promise.
    unsafe {
        for i in 0..count {
            let at = scores.add(i * rows);
            let weight = math::exp2_flushed(s, s.mul(s.fma(s.load(at), scale, less), log2_e));
            total = s.add(total, weight);
            s.store(at, weight);
        }
        s.store(largest.add(lane), now);
        s.store(sum.add(lane), s.fma(s.load(sum.add(lane)), factor, total));
        s.store(decay.add(lane), factor);
    }
}

/// The same for few rows, whose scores lie row by row.
///
/// # Safety
/// As for `weights`.
#[inline(always)]
pub(super) unsafe fn weights_by_row<S: Simd>(s: S, job: &Job, args: &Args, tile: &Tile, buffers: Buffers) {
    let (count, first, rule) = (tile.keys.len(), tile.keys.start as i32, Rule::new(job, tile));
    let mask = args.get("mask");
    let nothing = s.splat(f32::NEG_INFINITY);
    // Beyond the last key there is none.
    let hidden = tile.hidden | if count < KEYS { u64::MAX << count } else { 0 };
    let (mut lanes, mut bits) = ([0i32; PAD], [0i32; PAD]);
    for i in 0..S::LANES {
        (lanes[i], bits[i]) = (i as i32, 1 << i);
    }
    // SAFETY: whole vectors inside the buffers, which have KEYS scores a row.
    unsafe {
        let (lanes, bits) = (load_i(s, lanes.as_ptr().cast()), load_i(s, bits.as_ptr().cast()));
        for r in 0..tile.work.rows {
            if let Some(t) = &mask {
                mask_row(s, job, t, tile, r, buffers.row);
            }
            let scores = buffers.scores.add(r * KEYS);
            let (largest, slope) = (buffers.largest.add(r), s.splat(*buffers.slopes.add(r)));
            let position = *buffers.positions.cast::<i32>().add(r);
            let mut most = s.splat(*largest);
            for i in (0..count).step_by(S::LANES) {
                let distance = s.sub_i(s.splat_i(position.wrapping_sub(first + i as i32)), lanes);
                let added = if mask.is_some() { Some(s.load(buffers.row.add(i))) } else { None };
                let mut score = rule.score(s, s.load(scores.add(i)), distance, slope, added);
                let hidden = s.float(s.and(s.splat_i((hidden >> i) as i32), bits));
                score = s.select(s.eq(hidden, s.zero()), score, nothing);
                s.store(scores.add(i), score);
                most = s.max(score, most); // NaN is left to the sum
            }
            let now = s.max_lane(most);
            let shift = s.splat(if now == f32::NEG_INFINITY { 0.0 } else { now });
            let log2_e = s.splat(std::f32::consts::LOG2_E);
            let factor = s.max_lane(math::exp2_flushed(s, s.mul(s.sub(s.splat(*largest), shift), log2_e)));
            let mut total = s.zero();
            for i in (0..count).step_by(S::LANES) {
                let weight = math::exp2_flushed(s, s.mul(s.sub(s.load(scores.add(i)), shift), log2_e));
                total = s.add(total, weight);
                s.store(scores.add(i), weight);
            }
            let sum = buffers.sum.add(r);
            (*sum, *largest, *buffers.decay.add(r)) = (*sum * factor + s.sum(total), now, factor);
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

/// The additive mask of row `r` of a tile.
///
/// # Safety
/// `to` is a row of `KEYS`.
#[inline(always)]
unsafe fn mask_row<S: Simd>(s: S, job: &Job, mask: &Tensor, tile: &Tile, r: usize, to: *mut f32) {
    let Tile { work, keys, .. } = tile;
    let (of_heads, of_batch) = (mask.spec.dim(2), mask.spec.dim(3));
    let (i, h) = job.row(work, r);
    let matrix = if of_batch > 1 { work.batch } else { 0 } * of_heads + if of_heads > 1 { h } else { 0 };
    // SAFETY: the mask has this row and these columns; the caller's promise.
    unsafe { Row::part(mask, matrix * job.sizes.q_len + i, keys.start).load(s, keys.len(), to) }
}
