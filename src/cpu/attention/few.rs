//! Few rows, as in decoding, against a tile of keys: keys and values are read as they are stored, and become f32 in registers.
//!
//! Each key is loaded once for up to four rows: blocks of K keys by R rows of dot products, as many as a vector has lanes, whose
//! sums are then taken together; and blocks of R rows by NV vectors of values. Keys are asked for some rows ahead, values while their
//! keys are multiplied: rows lie a stride apart, where the processor itself looks ahead little.
//!
//! One row of 32 heads by 8 kv heads of 128, 4096 keys, one thread, AVX-512, on a machine shared with others, in turns with what was
//! before (rows decoded into a buffer, f32 read in place but not asked for): f16 2.3 and 3.7 to 1.4 and 1.7 ms, f32 4.5 and 5.9 to 3.0 and
//! 3.0, q8_0 2.9 and 3.7 to 2.1 and 2.0; 512 keys in f16 0.26 and 0.37 to 0.19 and 0.17. A plain sum read 18 GB/s there.

use half::{bf16, f16};

use super::{
    super::{
        row::{PAD, padded},
        simd::{Element, Simd},
    },
    tile::KEYS,
};
use crate::dtype::DType;

/// Rows that are asked for before they are read.
const AHEAD: usize = 8;
/// Bytes of a line of the cache.
const LINE: usize = 64;

/// The rows of a tile of keys or values.
pub(super) struct Lines {
    pub(super) at: [*const u8; KEYS],
    pub(super) count: usize,
    /// How they are stored: f32, f16, bf16 or q8_0.
    pub(super) dtype: DType,
    /// Bytes of a row.
    pub(super) bytes: usize,
    /// Bytes from one row to the next where all rows are so far apart, beyond this tile too; otherwise 0.
    pub(super) step: usize,
}

impl Lines {
    #[inline(always)]
    fn ask<S: Simd>(&self, s: S, i: usize) {
        let row = match self.at.get(i) {
            Some(&row) if i < self.count => row,
            _ if self.step > 0 => self.at[0].wrapping_add(i * self.step),
            _ => return,
        };
        for line in (0..self.bytes).step_by(LINE) {
            s.prefetch(row.wrapping_add(line));
        }
    }
}

/// True where rows of this type are read as they are stored.
pub(super) fn known(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::Q8_0)
}

/// A way to store numbers.
trait Stored {
    /// LANES numbers of a row from number `p` on, a multiple of LANES.
    ///
    /// # Safety
    /// The row has them.
    unsafe fn at<S: Simd>(s: S, row: *const u8, p: usize) -> S::F;
}

macro_rules! stored {
    ($($T:ty)*) => {$(
        impl Stored for $T {
            #[inline(always)]
            unsafe fn at<S: Simd>(s: S, row: *const u8, p: usize) -> S::F {
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
    #[inline(always)]
    unsafe fn at<S: Simd>(s: S, row: *const u8, p: usize) -> S::F {
        // SAFETY: the caller's promise; no vector crosses blocks.
        unsafe {
            let block = row.add(p / 32 * 34);
            let scale = s.f16_to_f32(u16::from_le_bytes(block.cast::<[u8; 2]>().read()));
            s.mul(s.splat(scale), s.float(s.load_i8(block.add(2 + p % 32).cast())))
        }
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
/// Keys and queries are there, padded with zeros to whole vectors; `v` are the same keys' values.
#[inline(always)]
pub(super) unsafe fn dots<S: Simd>(
    s: S,
    (rows, d): (usize, usize),
    (k, v): (&Lines, &Lines),
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
                (16, 4..) => dot_rows::<S, T, 4, 4>(s, d, k, v, q, to),
                (16, 2..) => dot_rows::<S, T, 8, 2>(s, d, k, v, q, to),
                (16, _) => dot_rows::<S, T, 16, 1>(s, d, k, v, q, to),
                (8, 2..) => dot_rows::<S, T, 4, 2>(s, d, k, v, q, to),
                (8, _) => dot_rows::<S, T, 8, 1>(s, d, k, v, q, to),
                _ => dot_rows::<S, T, 1, 1>(s, d, k, v, q, to),
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
    v: &Lines,
    queries: *const f32,
    scores: *mut f32,
) -> usize {
    for first in (0..k.count).step_by(K) {
        let mut sums = [[s.zero(); K]; R];
        let mut row = [k.at[0]; K];
        for (i, row) in row.iter_mut().enumerate() {
            *row = k.at[(first + i).min(k.count - 1)];
            k.ask(s, first + i + AHEAD);
            v.ask(s, first + i);
        }
        // SAFETY: the caller's promise; KEYS is a multiple of K.
        unsafe {
            for p in (0..d).step_by(S::LANES) {
                let mut right = [s.zero(); R];
                for (r, right) in right.iter_mut().enumerate() {
                    *right = s.load(queries.add(r * padded(d) + p));
                }
                for (i, &row) in row.iter().enumerate() {
                    let left = T::at(s, row, p);
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

/// `out[row] = decay[row] * out[row] + sum over keys of weights[row][key] v[key]`, rows of `out` padded.
///
/// # Safety
/// The values, padded with zeros to whole vectors, and the other operands are there.
#[inline(always)]
pub(super) unsafe fn values<S: Simd>(
    s: S,
    (rows, dv): (usize, usize),
    v: &Lines,
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
                (16, 4..) => value_rows::<S, T, 4, 4>(s, dv, v, w, decay, out),
                (16, 2..) => value_rows::<S, T, 2, 8>(s, dv, v, w, decay, out),
                (16, _) => value_rows::<S, T, 1, 8>(s, dv, v, w, decay, out),
                (8, 4..) => value_rows::<S, T, 4, 2>(s, dv, v, w, decay, out),
                (8, 2..) => value_rows::<S, T, 2, 4>(s, dv, v, w, decay, out),
                _ => value_rows::<S, T, 1, 4>(s, dv, v, w, decay, out),
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
    weights: *const f32,
    decay: *const f32,
    out: *mut f32,
) -> usize {
    let mut p = 0;
    // SAFETY: p stays below dv.
    unsafe {
        while p + NV * S::LANES <= dv {
            value_block::<S, T, R, NV>(s, p, padded(dv), v, weights, decay, out);
            p += NV * S::LANES;
        }
        while p < dv {
            value_block::<S, T, R, 1>(s, p, padded(dv), v, weights, decay, out);
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
    p: usize,
    pitch: usize,
    v: &Lines,
    weights: *const f32,
    decay: *const f32,
    out: *mut f32,
) {
    let mut sums = [[s.zero(); NV]; R];
    // SAFETY: the caller's promise.
    unsafe {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.mul(s.load(out.add(r * pitch + p + i * S::LANES)), s.splat(*decay.add(r)));
            }
        }
        for (key, &row) in v.at.iter().enumerate().take(v.count) {
            let mut right = [s.zero(); NV];
            for (i, right) in right.iter_mut().enumerate() {
                *right = T::at(s, row, p + i * S::LANES);
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
