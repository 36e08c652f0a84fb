//! Few rows, as in decoding, against a tile of keys: keys and values are read as they are stored, and become f32 in registers.
//!
//! Each key is loaded once for up to four rows: blocks of K keys by R rows of dot products, as many as a vector has lanes, whose
//! sums are then taken together; and blocks of R rows by NV vectors of values. A task takes a tile of keys for all its kv heads, whose rows
//! lie side by side, then the next tile: memory is read in one stream, and a tile is asked for while the one before it is computed.
//!
//! One row of 32 heads by 8 kv heads of 128, 16384 keys of f16, AVX-512, in turns with a head at a time (keys asked for 8 rows ahead, values
//! while their keys are multiplied), best of many: one thread 7.2 to 5.9 ms, two 3.9 to 2.9; medians on the shared machine 9.5 and 9.6, 4.2
//! and 3.9. 4096 keys, which stay in the third cache, 1.62 and 1.55: no more than noise. Tried and lost: a tile with no request at all (half
//! as fast), requests past all caches (a third as fast), and rows whose address took a division each (two thirds).
//! A second cache of 512 KB held neither this tile nor the next: shorter tiles take 43 ms in place of 56 for 16384 keys of f32, 24 of 31 for bf16, 10.5 of 14
//! for 4096 of f32 (Zen 3, one thread; at the speed of memory the first would take 8: what limits it is not known).

use std::ops::Range;

use half::{bf16, f16};

use super::{
    super::{
        kernel::{Args, Tensor},
        machine,
        row::{PAD, padded},
        simd::{Element, Simd},
    },
    Job, Work,
    place::{LINE, Place},
    tile::{Buffers, KEYS, Tile, start},
    weights::weights_by_row,
};
use crate::{dtype::DType, op::attention::Sizes};

/// The rows of a tile of keys or values.
pub(super) struct Lines {
    pub(super) at: [*const u8; KEYS],
    pub(super) count: usize,
    /// How they are stored: f32, f16, bf16 or q8_0.
    pub(super) dtype: DType,
}

/// What the next tile will read: asked for line by line while this one is computed, for nothing else sees it coming. The heads of a task
/// share it, each has the rows of some keys, all of whose heads lie side by side.
struct Ahead<'a> {
    place: &'a Place,
    of: [Tensor<'a>; 2],
    /// Lines of a row of k and of v.
    lines: [usize; 2],
    head: usize,
    /// First, next and last row, counted through those of k and then those of v.
    keys: Range<usize>,
    row: usize,
    /// The next line of the row, and how many are left.
    line: *const u8,
    left: usize,
    /// Lines for each key of this tile.
    each: usize,
}

impl<'a> Ahead<'a> {
    /// The part of the task's `i`-th head, for a tile of so many keys.
    #[inline(always)]
    fn new(of: [Tensor<'a>; 2], place: &'a Place, heads: &Range<usize>, i: usize, tile: usize) -> Ahead<'a> {
        let (n, count) = (heads.len(), place.count);
        let joined = of.iter().all(|t| t.spec.stride(0) == 1 && t.spec.stride(1) == t.spec.dim(0));
        let (head, keys, rows) = match joined {
            true => (heads.start, count * i / n..count * (i + 1) / n, n),
            false => (heads.start + i, 0..count, 1),
        };
        let lines = of.map(|t| (t.dtype().bytes(t.spec.dim(0)).unwrap_or(0) * rows).div_ceil(LINE));
        // The tile's keys are met twice: in k and in v.
        let each = (keys.len() * (lines[0] + lines[1])).div_ceil(2 * tile.max(1));
        Ahead { place, of, lines, head, row: 0, keys, line: std::ptr::null(), left: 0, each }
    }

    /// Asks for the share of so many keys.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S, keys: usize) {
        let mut lines = keys * self.each;
        while lines > 0 {
            if self.left == 0 {
                let count = self.keys.len();
                if self.row == 2 * count {
                    return;
                }
                let (which, key) = (self.row / count, self.keys.start + self.row % count);
                self.line = self.place.row(&self.of[which], key, self.head);
                (self.left, self.row) = (self.lines[which], self.row + 1);
            }
            let now = lines.min(self.left);
            for i in 0..now {
                s.prefetch(self.line.wrapping_add(i * LINE));
            }
            self.line = self.line.wrapping_add(now * LINE);
            (lines, self.left) = (lines - now, self.left - now);
        }
    }
}

/// Keys of a tile: as many as leave this one and the next half of the second cache, whichever heads a task has.
fn step(k: &Tensor, v: &Tensor) -> usize {
    let key = |t: &Tensor| t.dtype().bytes(t.spec.dim(0)).unwrap_or(0) * t.spec.dim(1);
    let (key, room) = (key(k) + key(v), machine::caches().second / 4);
    let mut step = KEYS;
    while step > 8 && step * key > room {
        step /= 2;
    }
    step
}

/// Computes the few rows of a task's heads against those of the sequence's keys that lie in `keys`: all heads with a tile of keys, then
/// the next, so that memory is read in one stream. What lies up to `until` is read next.
///
/// # Safety
/// As for [`super::tile::tiles`], with buffers for each head.
#[inline(always)]
pub(super) unsafe fn tiles_of_few<S: Simd>(
    s: S,
    job: &Job,
    args: &Args,
    (work, heads): (&Work, Range<usize>),
    (keys, until): (Range<usize>, usize),
    memory: *mut f32,
) {
    let (Sizes { d, dv, .. }, rows) = (job.sizes, work.rows);
    let (k, v) = (args.of("k"), args.of("v"));
    let last = job.visible(work, keys.start..until).end;
    let keys = job.visible(work, keys);
    let step = step(&k, &v);
    let tile = |first: usize, end: usize| first.max(keys.start)..(first + step).min(end);
    // SAFETY: buffers are as long as their fields say, keys lie in the sequence.
    unsafe {
        for (i, head) in heads.clone().enumerate() {
            start(s, job, args, &work.of_head(head), true, Buffers::new(job, memory, i));
        }
        let mut first = keys.start - keys.start % step;
        let mut place = Place::find(job, args, work, tile(first, keys.end));
        while first < keys.end {
            let these = tile(first, keys.end);
            first += step;
            let next = Place::find(job, args, work, tile(first, last.max(first)));
            for (i, head) in heads.clone().enumerate() {
                place.kv_head = head;
                let buffers = Buffers::new(job, memory, i);
                let Buffers { queries, scores, out, decay, .. } = buffers;
                let mut ahead = Ahead::new([k, v], &next, &heads, i, these.len());
                let k = place.lines(s, &k, d, buffers.keys);
                let v = place.lines(s, &v, dv, buffers.values);
                let work = work.of_head(head);
                let tile = Tile { work, keys: these.clone(), hidden: place.hidden, lanes: 0..0 };
                dots(s, (rows, d), &k, &mut ahead, queries, scores);
                weights_by_row(s, job, args, &tile, buffers);
                values(s, (rows, dv), &v, &mut ahead, scores, decay, out);
            }
            place = next;
        }
    }
}

/// True where rows of this type are read as they are stored.
pub(super) fn known(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::Q8_0)
}

/// A way to store numbers.
trait Stored {
    /// Numbers that share a scale; 0 where there is none.
    const RUN: usize = 0;

    /// The scale of number `p`.
    ///
    /// # Safety
    /// The row has it.
    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, _row: *const u8, _p: usize) -> S::F {
        s.zero()
    }

    /// LANES numbers of a row from number `p` on, a multiple of LANES, all of that scale.
    ///
    /// # Safety
    /// The row has them.
    unsafe fn at<S: Simd>(s: S, row: *const u8, p: usize, scale: S::F) -> S::F;
}

macro_rules! stored {
    ($($T:ty)*) => {$(
        impl Stored for $T {
            #[inline(always)]
            unsafe fn at<S: Simd>(s: S, row: *const u8, p: usize, _: S::F) -> S::F {
                // SAFETY: the caller's promise.
                unsafe { <$T as Element>::load(s, row.cast::<$T>().add(p)) }
            }
        }
    )*};
}
stored!(f32 f16 bf16);

/// Blocks of 32: an f16 scale, then as many bytes.
struct Q8;

impl Stored for Q8 {
    const RUN: usize = 32;

    #[inline(always)]
    unsafe fn scale<S: Simd>(s: S, row: *const u8, p: usize) -> S::F {
        // SAFETY: the caller's promise.
        let bits = unsafe { row.add(p / 32 * 34).cast::<[u8; 2]>().read() };
        s.splat(s.f16_to_f32(u16::from_le_bytes(bits)))
    }

    #[inline(always)]
    unsafe fn at<S: Simd>(s: S, row: *const u8, p: usize, scale: S::F) -> S::F {
        // SAFETY: the caller's promise; no vector crosses blocks.
        unsafe { s.mul(scale, s.float(s.load_i8(row.add(p / 32 * 34 + 2 + p % 32).cast()))) }
    }
}

macro_rules! stored_as {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::F16 => {
                type $T = f16;
                $body
            }
            DType::BF16 => {
                type $T = bf16;
                $body
            }
            DType::Q8_0 => {
                type $T = Q8;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}

/// `scores[row][key] = k[key] . queries[row]`, [`KEYS`] a row, for whole blocks of keys: what is beyond the last is its copy.
///
/// # Safety
/// Keys and queries are there, padded with zeros to whole vectors.
#[inline(always)]
unsafe fn dots<S: Simd>(
    s: S,
    (rows, d): (usize, usize),
    k: &Lines,
    ahead: &mut Ahead,
    queries: *const f32,
    scores: *mut f32,
) {
    let mut r = 0;
    while r < rows {
        // SAFETY: r stays below rows.
        unsafe {
            let (q, to) = (queries.add(r * padded(d)), scores.add(r * KEYS));
            // As many sums as a vector has lanes.
            r += stored_as!(k.dtype, T => match (S::LANES, rows - r) {
                (16, 4..) => dot_rows::<S, T, 4, 4>(s, d, k, ahead, q, to),
                (16, 2..) => dot_rows::<S, T, 8, 2>(s, d, k, ahead, q, to),
                (16, _) => dot_rows::<S, T, 16, 1>(s, d, k, ahead, q, to),
                (8, 2..) => dot_rows::<S, T, 4, 2>(s, d, k, ahead, q, to),
                (8, _) => dot_rows::<S, T, 8, 1>(s, d, k, ahead, q, to),
                _ => dot_rows::<S, T, 1, 1>(s, d, k, ahead, q, to),
            });
        }
    }
}

/// R rows, K keys at a time.
///
/// # Safety
/// As for `dots`, with keys stored as T.
#[inline(always)]
unsafe fn dot_rows<S: Simd, T: Stored, const K: usize, const R: usize>(
    s: S,
    d: usize,
    k: &Lines,
    ahead: &mut Ahead,
    queries: *const f32,
    scores: *mut f32,
) -> usize {
    let run = T::RUN.max(S::LANES);
    for first in (0..k.count).step_by(K) {
        let mut sums = [[s.zero(); K]; R];
        let mut row = [k.at[0]; K];
        for (i, row) in row.iter_mut().enumerate() {
            *row = k.at[(first + i).min(k.count - 1)];
        }
        ahead.ask(s, K);
        // SAFETY: the caller's promise; KEYS is a multiple of K.
        unsafe {
            for start in (0..d).step_by(run) {
                let mut scales = [s.zero(); K];
                for (scale, &row) in scales.iter_mut().zip(&row) {
                    *scale = T::scale(s, row, start);
                }
                for p in (start..start + run).step_by(S::LANES) {
                    let mut right = [s.zero(); R];
                    for (r, right) in right.iter_mut().enumerate() {
                        *right = s.load(queries.add(r * padded(d) + p));
                    }
                    for (i, (&row, &scale)) in row.iter().zip(&scales).enumerate() {
                        let left = T::at(s, row, p, scale);
                        for (sums, &right) in sums.iter_mut().zip(&right) {
                            sums[i] = s.fma(left, right, sums[i]);
                        }
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

/// `out[row] = decay[row] * out[row] + sum over keys of weights[row][key] v[key]`, rows of `out` padded.
///
/// # Safety
/// The values, padded with zeros to whole vectors, and the other operands are there.
#[inline(always)]
unsafe fn values<S: Simd>(
    s: S,
    (rows, dv): (usize, usize),
    v: &Lines,
    ahead: &mut Ahead,
    weights: *const f32,
    decay: *const f32,
    out: *mut f32,
) {
    let mut r = 0;
    while r < rows {
        // SAFETY: r stays below rows.
        unsafe {
            let (w, decay, out) = (weights.add(r * KEYS), decay.add(r), out.add(r * padded(dv)));
            r += stored_as!(v.dtype, T => match (S::LANES, rows - r) {
                (16, 4..) => value_rows::<S, T, 4, 4>(s, dv, v, ahead, w, decay, out),
                (16, 2..) => value_rows::<S, T, 2, 8>(s, dv, v, ahead, w, decay, out),
                (16, _) => value_rows::<S, T, 1, 8>(s, dv, v, ahead, w, decay, out),
                (8, 4..) => value_rows::<S, T, 4, 2>(s, dv, v, ahead, w, decay, out),
                (8, 2..) => value_rows::<S, T, 2, 4>(s, dv, v, ahead, w, decay, out),
                _ => value_rows::<S, T, 1, 4>(s, dv, v, ahead, w, decay, out),
            });
        }
    }
}

/// R rows, NV vectors at a time, then one at a time.
///
/// # Safety
/// As for `values`, stored as T.
#[inline(always)]
unsafe fn value_rows<S: Simd, T: Stored, const R: usize, const NV: usize>(
    s: S,
    dv: usize,
    v: &Lines,
    ahead: &mut Ahead,
    weights: *const f32,
    decay: *const f32,
    out: *mut f32,
) -> usize {
    let mut p = 0;
    // SAFETY: p stays below dv.
    unsafe {
        while p + NV * S::LANES <= dv {
            value_block::<S, T, R, NV>(s, (p, padded(dv)), v, ahead, weights, decay, out);
            p += NV * S::LANES;
        }
        while p < dv {
            value_block::<S, T, R, 1>(s, (p, padded(dv)), v, ahead, weights, decay, out);
            p += S::LANES;
        }
    }
    R
}

/// # Safety
/// As for `value_rows`, with numbers `p ..` of each row; rows of `out` are `pitch` apart.
#[inline(always)]
unsafe fn value_block<S: Simd, T: Stored, const R: usize, const NV: usize>(
    s: S,
    (p, pitch): (usize, usize),
    v: &Lines,
    ahead: &mut Ahead,
    weights: *const f32,
    decay: *const f32,
    out: *mut f32,
) {
    let (mut sums, run) = ([[s.zero(); NV]; R], T::RUN.max(S::LANES));
    // SAFETY: the caller's promise.
    unsafe {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.mul(s.load(out.add(r * pitch + p + i * S::LANES)), s.splat(*decay.add(r)));
            }
        }
        for (key, &row) in v.at.iter().enumerate().take(v.count) {
            ahead.ask(s, 1);
            let (mut right, mut scale) = ([s.zero(); NV], s.zero());
            for (i, right) in right.iter_mut().enumerate() {
                let p = p + i * S::LANES;
                if (i * S::LANES).is_multiple_of(run) {
                    scale = T::scale(s, row, p);
                }
                *right = T::at(s, row, p, scale);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let weight = s.splat(*weights.add(r * KEYS + key));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = s.fma(weight, right, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (i, &sum) in sums.iter().enumerate() {
                s.store(out.add(r * pitch + p + i * S::LANES), sum);
            }
        }
    }
}
