//! Products of 8-bit integers, for quantized weights under `Numerics::Fast`: both factors are rounded to 8 bits with a scale for
//! each block, multiplied by groups of four (VNNI), and the sums of blocks added up in f32.
//!
//! The weight keeps its stored form. A panel of 32 of its rows by 256 elements is decoded, rounded and interleaved in the
//! first cache, then serves all rows of x that are in scratch memory, up to 516 of them:
//!
//! ```text
//! Row of x:  | q: i8 [256] | start: i32 [8] | scale: f32 |          start = -128 * (sum of q), per group
//! Panel:     | q + 128: u8 [64][32 columns][4 of k] | scale: f32 [8 groups][32 columns] |
//! ```
//!
//! `sum x w = x.scale * sum over groups of w.scale * (start + sum x.q (w.q + 128))`: the instruction wants one factor unsigned.
//! A column has one scale for all 256 elements, so that scaling costs nothing beside 64 dot products; formats of 8 bits keep
//! their own for each 32, whose blocks come out unchanged.
//!
//! One thread, AVX-512 VNNI, 512 rows by 2048 x 2048, three times in turns with panels that were decoded by code of each format's own, of
//! the int8 peak of the same run: q4_k 46 to 51 % (44 to 52), q8_0 42 to 53 % (40 to 48), q5_k 43 to 48 % (34 to 39); 32 rows by
//! q4_k 16 to 21 % (15 to 19). The loop alone reaches 88 to 95 %: making panels, 0.25 ns an element, is what costs.

use std::{mem::MaybeUninit, ops::Range, slice};

use super::{
    int8_rows::Q8_0,
    tile::{BLOCK, PANEL},
    weight::Weight,
};
use crate::{
    cpu::{
        simd::Simd,
        unpack::{Levels, is_uniform, unpack},
    },
    dtype::DType,
};

/// Rows of a strip; the lower ones divide it.
pub(super) const TALLEST: usize = 12;
/// The most groups of a block.
const GROUPS: usize = 8;
/// What makes weights unsigned.
const OFFSET: i32 = 128;

/// A block of a row of x.
#[repr(C)]
pub(super) struct Row {
    q: [i8; BLOCK],
    start: [i32; GROUPS],
    scale: f32,
}

/// A block of 32 rows of the weight.
#[repr(C)]
pub(super) struct Panel {
    q: [[[u8; 4]; PANEL]; BLOCK / 4],
    scale: [[f32; PANEL]; GROUPS],
}

/// Groups of a block that have scales of their own.
fn groups(dtype: DType) -> usize {
    if matches!(dtype, DType::Q8_0 | DType::Q8_1) { GROUPS } else { 1 }
}

/// Rounds a block of x, to be multiplied with a weight of this dtype. A block with a NaN or an infinity becomes NaN.
///
/// # Safety
/// `x` holds BLOCK elements, zeros beyond the last; `to` is writable.
#[inline(always)]
pub(super) unsafe fn row<S: Simd>(s: S, dtype: DType, x: *const f32, to: *mut Row) {
    let count = groups(dtype);
    let span = BLOCK / count;
    // SAFETY: indices stay inside the block.
    unsafe {
        let (scale, inverse) = scale(s, x, BLOCK);
        let q = (&raw mut (*to).q).cast::<i8>();
        round(s, x, inverse, q, BLOCK);
        (*to).scale = scale;
        for g in 0..count {
            let (mut sum, mut p) = (s.splat_i(0), 0);
            while p < span {
                sum = s.add_i(sum, s.load_i8(q.add(g * span + p)));
                p += S::LANES;
            }
            (*to).start[g] = -OFFSET * s.sum(s.float(sum)) as i32; // exact: below 2^24
        }
    }
}

/// Decodes and rounds rows `j .. j + 32` (zeros beyond the last), elements `k` of each.
///
/// # Safety
/// The range exists, begins at a multiple of BLOCK and is at most that long; `to` is writable.
#[inline(always)]
pub(super) unsafe fn panel<S: Simd>(s: S, w: &Weight, j: usize, k: Range<usize>, to: *mut Panel) {
    let dtype = w.tensor.dtype();
    let (count, n) = (groups(dtype), w.n());
    let span = BLOCK / count;
    // Nothing to round where a group is one of bytes with a scale.
    let as_stored = is_uniform(dtype) && w.scales.is_none();
    let bytes = as_stored && dtype == DType::Q8_0 && S::LANES == 16;
    let (mut levels, sign) = (Levels::ZERO, s.splat_i(0x8080_8080u32 as i32));
    let mut values = MaybeUninit::<[f32; BLOCK]>::uninit();
    let mut rows = MaybeUninit::<[[i8; BLOCK]; 16]>::uninit();
    let (values, rows) = (values.as_mut_ptr().cast::<f32>(), rows.as_mut_ptr().cast::<i8>());
    // SAFETY: rows below n exist; indices stay inside the buffers, which hold a block of at least LANES rows.
    unsafe {
        for column in (0..PANEL).step_by(S::LANES) {
            for i in 0..S::LANES {
                let row = j + column + i;
                let len = if row < n { k.len() } else { 0 };
                let to_row = rows.add(i * BLOCK);
                if bytes && len == BLOCK {
                    let (u, scales) = Q8_0::bytes(s, w.element(row * w.tensor.spec.stride(1) + k.start));
                    for (v, &u) in u.iter().enumerate() {
                        s.store(to_row.cast::<f32>().add(v * S::LANES), s.of_bits(u));
                    }
                    s.store(values, scales);
                    (0..GROUPS).for_each(|g| (*to).scale[g][column + i] = *values.add(g));
                    continue;
                }
                if as_stored {
                    let from = w.element(row.min(n - 1) * w.tensor.spec.stride(1) + k.start);
                    unpack(s, dtype, slice::from_raw_parts(from, dtype.bytes(len).unwrap_or(0)), &mut levels);
                    for at in (0..BLOCK).step_by(4 * S::LANES) {
                        let q = s.xor(s.bits(s.load(levels.q.as_ptr().add(at).cast())), sign);
                        s.store(to_row.add(at).cast(), s.of_bits(q));
                    }
                    (0..count).for_each(|g| (*to).scale[g][column + i] = levels.scale[g * 16 / count]);
                    continue;
                }
                if len > 0 {
                    w.row(s, row, k.clone(), values);
                }
                values.add(len).write_bytes(0, BLOCK - len);
                for g in 0..count {
                    let x = values.add(g * span);
                    let (scale, inverse) = scale(s, x, span);
                    (*to).scale[g][column + i] = scale;
                    round(s, x, inverse, to_row.add(g * span), span);
                }
                for at in (0..BLOCK).step_by(4 * S::LANES) {
                    let q = to_row.add(at).cast::<f32>();
                    s.store(q, s.of_bits(s.xor(s.bits(s.load(q)), sign)));
                }
            }
            let q = (&raw mut (*to).q).cast::<f32>(); // four bytes at a time
            for p in (0..BLOCK / 4).step_by(S::LANES) {
                s.transpose(rows.cast::<f32>().add(p), BLOCK / 4, q.add(p * PANEL + column), PANEL);
            }
        }
    }
}

/// The scale of `n` elements, NaN where one is no finite number, and its inverse, 0 where there is none.
///
/// # Safety
/// `x` holds `n` elements, a multiple of 32.
#[inline(always)]
pub(super) unsafe fn scale<S: Simd>(s: S, x: *const f32, n: usize) -> (f32, f32) {
    let (mut largest, mut zero, mut i) = ([s.zero(); 2], [s.zero(); 2], 0);
    while i < n {
        let mut v = 0;
        while v < 2 {
            // SAFETY: i < n, a multiple of two vectors.
            let x = unsafe { s.load(x.add(i)) };
            largest[v] = s.max(s.abs(x), largest[v]);
            zero[v] = s.fma(x, s.zero(), zero[v]);
            i += S::LANES;
            v += 1;
        }
    }
    let largest = s.max_lane(s.max(largest[0], largest[1]));
    let inverse = if largest > 1e-36 { 127.0 / largest } else { 0.0 };
    (largest / 127.0 + s.sum(s.add(zero[0], zero[1])), inverse)
}

/// `n` elements times the inverse, rounded.
///
/// # Safety
/// `x` and `to` hold `n` elements, a multiple of 32.
#[inline(always)]
pub(super) unsafe fn round<S: Simd>(s: S, x: *const f32, inverse: f32, to: *mut i8, n: usize) {
    let (inverse, mut i) = (s.splat(inverse), 0);
    // SAFETY: indices stay below n.
    unsafe {
        while i + 4 * S::LANES <= n {
            let mut q = [s.splat_i(0); 4];
            let mut v = 0;
            while v < 4 {
                q[v] = s.to_i(s.mul(s.load(x.add(i + v * S::LANES)), inverse));
                v += 1;
            }
            s.store(to.add(i).cast(), s.of_bits(s.narrow(q)));
            i += 4 * S::LANES;
        }
        while i < n {
            s.store_i8(to.add(i), s.to_i(s.mul(s.load(x.add(i)), inverse)));
            i += S::LANES;
        }
    }
}

/// What the loop reads and writes.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) a: *const Row,
    pub(super) b: *const Panel,
    /// Elements of k, at most BLOCK.
    pub(super) k: usize,
    pub(super) c: *mut f32,
    /// Elements between rows of `c`.
    pub(super) pitch: usize,
    /// The first block: `c` is overwritten.
    pub(super) first: bool,
}

/// `rows` rows by a panel of a weight of this dtype.
///
/// # Safety
/// `a` holds `rows` rows made for the dtype, `b` its panel, `c` `rows` rows of PANEL at the pitch.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(s: S, dtype: DType, rows: usize, t: Tile) {
    let mut i = 0;
    // SAFETY: strips cover the rows in order; the caller's promise holds for each.
    unsafe {
        macro_rules! strips {
            ($($height:literal)*; $groups:expr) => {$(
                while rows - i >= $height {
                    let strip = Tile { a: t.a.add(i), c: t.c.add(i * t.pitch), ..t };
                    s.outline(
                        #[inline(always)]
                        || columns::<S, $height, $groups>(s, strip),
                    );
                    i += $height;
                }
            )*};
        }
        if groups(dtype) == 1 {
            strips!(12 4 2 1; 1);
        } else {
            strips!(6 2 1; GROUPS);
        }
    }
}

/// All columns of the panel, two vectors at a time.
#[inline(always)]
unsafe fn columns<S: Simd, const M: usize, const G: usize>(s: S, t: Tile) {
    for j in (0..PANEL).step_by(2 * S::LANES) {
        // SAFETY: 2 LANES divide PANEL.
        unsafe { registers::<S, M, G>(s, t, j) }
    }
}

#[inline(always)]
unsafe fn registers<S: Simd, const M: usize, const G: usize>(s: S, t: Tile, j: usize) {
    let mut sums = [[s.zero(); 2]; M];
    let (quads, span) = (t.k.div_ceil(4), BLOCK / 4 / G);
    // SAFETY: quads are those of a block, i < M, two vectors of columns.
    unsafe {
        let mut b = (&raw const (*t.b).q).cast::<f32>().add(j);
        let mut a = (&raw const (*t.a).q).cast::<u8>();
        let mut g = 0;
        while g < G {
            let mut acc = [[s.splat_i(0); 2]; M];
            let mut i = 0;
            while i < M {
                acc[i] = [s.splat_i((*t.a.add(i)).start[g]); 2];
                i += 1;
            }
            for _ in g * span..quads.min(g * span + span) {
                let (b0, b1) = (s.bits(s.load(b)), s.bits(s.load(b.add(S::LANES))));
                let mut i = 0;
                while i < M {
                    let x = s.splat_i(a.add(i * size_of::<Row>()).cast::<i32>().read_unaligned());
                    acc[i] = [s.dot(acc[i][0], b0, x), s.dot(acc[i][1], b1, x)];
                    i += 1;
                }
                (a, b) = (a.add(4), b.add(PANEL));
            }
            let scale = (&raw const (*t.b).scale[g]).cast::<f32>().add(j);
            let scale = [s.load(scale), s.load(scale.add(S::LANES))];
            let mut i = 0;
            while i < M {
                sums[i][0] = s.fma(s.float(acc[i][0]), scale[0], sums[i][0]);
                sums[i][1] = s.fma(s.float(acc[i][1]), scale[1], sums[i][1]);
                i += 1;
            }
            g += 1;
        }
        let mut i = 0;
        while i < M {
            let scale = s.splat((*t.a.add(i)).scale);
            let mut v = 0;
            while v < 2 {
                let c = t.c.add(i * t.pitch + v * S::LANES);
                let sum = s.mul(sums[i][v], scale);
                s.store(c, if t.first { sum } else { s.add(s.load(c), sum) });
                v += 1;
            }
            i += 1;
        }
    }
}
