//! Products of 8-bit integers, for quantized weights under `Numerics::Fast`: both factors are rounded to 8 bits with a scale for
//! each block, multiplied by groups of four, and the sums of blocks added up in f32.
//!
//! The weight keeps its stored form. A panel of 32 of its rows by 256 elements is decoded, rounded and interleaved in the
//! first cache, then serves all rows of x that are in scratch memory, up to 516 of them:
//!
//! ```text
//! Row of x:  | q: i8 [256] | start: i32 [8] | scale: f32 |          start = -128 * (sum of q), per group
//! Panel:     | q + 128: u8 [64][32 columns][4 of k] | scale: f32 [8 groups][32 columns] |
//! ```
//!
//! `sum x w = x.scale * sum over groups of w.scale * (start + sum x.q (w.q + 128))`: VNNI wants one factor unsigned. Where signed bytes take less
//! ([`Simd::SIGNED`]: NEON's `sdot`; AVX2 multiplies |w| with x under w's sign, whose pairs fit 16 bits), panels hold q itself, and `start` is 0. With
//! [`Simd::RUNS`] (AVX2) formats of up to 7 bits go another way, [`int8_runs`]. IQ4_NL and IQ4_XS, of 8, do not: rounded to 7 bits they need no sign, 24
//! instructions for 256 products in place of 34 (Zen 3, 512 rows 106 ms in place of 143), but weights of heavy tails then err by up to 9e-4.
//! A column has one scale for all 256 elements, so that scaling costs nothing beside 64 dot products; formats of 8 bits keep
//! their own for each 32, whose blocks come out unchanged.
//!
//! A panel is made without f32: the [`Format`] gives 256 bytes of each of 16 rows, which are turned so that a vector has four bytes of
//! each row; then scales are vectors, and `256 q = factor u + start` in 16 bits rounds all of a group. The fixed point (factors are multiples of 1/256) adds
//! less than a tenth to the error of rounding to 8 bits. Normalized squared error of a product of normal numbers, against the decoded weight, x in 8
//! bits included: q8_0 4.7e-5 (which is that of x), q4_0 9.4e-5, q5_0 8.1e-5, q6_k 8.7e-5, q4_k and q5_k 1.1e-4, the worst mxfp4 1.2e-4; allowed are 5e-4.
//!
//! One thread, AVX-512 VNNI, 2048 x 2048, in turns with panels decoded to f32 and rounded there, of the int8 peak of the same run: 512 rows by q4_k
//! 60 to 68 % (53 to 56), q4_0 66 to 69 % (43 to 55), q6_k 65 to 70 % (50 to 58), q8_0 53 to 61 % (40 to 60). A panel takes 0.18 ns an element
//! (0.83): 32 rows by q4_k 1.49 ms (4.22), 16 rows 1.09 ms (3.83). At 512 rows the loop is 68 % of the time, panels 9, rounding x 8,
//! finishing 7.
//!
//! What the next panel is made from is asked for row by row beside the strips, x is read where it lies, and formats without offsets turn none: with a
//! peak of 684 GOP/s, the best of five, 512 rows by 2048 x 2048: q4_0 81 %, q5_0 78, q4_k 71, q6_k 70 (q4_k at 4096 x 4096 65); as the median of
//! many runs q4_k before 11.5 and after 10.5 ms.
//!
//! Less than AVX-512 on the same processor, one thread and run, 4096 x 4096, ms for 32 and 512 rows; in brackets AVX2 through f32: AVX2 (before
//! `int8_runs`) q4_k 12.4, 158 (23.4, 235), q8_0 14.3, 175 (24.0, 259), q6_k 13.3, 159; AVX-VNNI q4_k 6.0, 58, q8_0 5.2, 67, q6_k 6.6, 62. Strips are of 4 and 6 rows there: twelve sums and
//! what they need beside them fill 16 registers. NEON was not timed.

use std::{mem::MaybeUninit, ops::Range};

use super::{
    format::{Format, format},
    int8_runs,
    tile::{Ahead, BLOCK},
    weight::Weight,
};
use crate::{cpu::simd::Simd, dtype::DType};

/// Columns of a panel.
pub(super) const PANEL: usize = 32;
/// Rows of a strip; the lower ones divide it.
pub(super) const TALLEST: usize = 12;
/// The most groups of a block.
const GROUPS: usize = 8;
/// Bytes of 256 elements of the largest format.
pub(super) const LONGEST: usize = 292;
/// Blocks of any format that decode to zeros.
const ZEROS: &[u8; LONGEST] = &[0; LONGEST];

/// What is added to the bytes of weights: makes them unsigned, where the instruction wants that.
const fn added<S: Simd>() -> i32 {
    if S::SIGNED { 0 } else { 128 }
}

/// A block of a row of x; `sums` are of [`int8_runs`].
#[repr(C)]
pub(super) struct Row {
    pub(super) q: [i8; BLOCK],
    pub(super) sums: [f32; 16],
    start: [i32; GROUPS],
    pub(super) scale: f32,
}

/// A block of 32 rows of the weight; `factors` and `offsets` are of [`int8_runs`].
#[repr(C)]
pub(super) struct Panel {
    pub(super) q: [[[u8; 4]; PANEL]; BLOCK / 4],
    pub(super) scale: [[f32; PANEL]; GROUPS],
    pub(super) factors: [[[i16; 2]; PANEL]; 16],
    pub(super) offsets: [[f32; PANEL]; 16],
}

/// Groups of a block that have scales of their own.
fn groups(dtype: DType) -> usize {
    if matches!(dtype, DType::Q8_0 | DType::Q8_1) { GROUPS } else { 1 }
}

/// True for bytes that stay as they are.
fn kept(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::Q8_0 | DType::Q8_1 | DType::Q8_K)
}

/// Rounds a block of x, to be multiplied with a weight of this dtype. A block with a NaN or an infinity becomes NaN.
///
/// # Safety
/// `x` holds BLOCK elements, zeros beyond the last; `to` is writable.
#[inline(always)]
pub(super) unsafe fn row<S: Simd>(s: S, dtype: DType, x: *const f32, to: *mut Row) {
    if !S::DOTS {
        return; // never planned, and so never compiled
    }
    if int8_runs::steps::<S>(dtype) > 0 {
        // SAFETY: the caller's promise.
        return format!(dtype, F => unsafe { int8_runs::row::<S, F>(s, x, to) });
    }
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
            (*to).start[g] = -added::<S>() * s.sum(s.float(sum)) as i32; // exact: below 2^24
        }
    }
}

/// Decodes and rounds rows `j .. j + 32` (zeros beyond the last), elements `k` of each, of a quantized weight without other scales.
///
/// # Safety
/// The range exists, begins at a multiple of BLOCK and is at most that long; `to` is writable.
#[inline(always)]
pub(super) unsafe fn panel<S: Simd>(s: S, w: &Weight, j: usize, k: Range<usize>, to: *mut Panel) {
    if !S::DOTS {
        return; // never planned, and so never compiled
    }
    let dtype = w.tensor.dtype();
    let (elements, size) = dtype.block();
    let mut padded = MaybeUninit::<[[u8; LONGEST]; 16]>::uninit();
    let padded = padded.as_mut_ptr().cast::<u8>();
    for column in (0..PANEL).step_by(16) {
        let mut rows = [ZEROS.as_ptr(); 16];
        for (i, from) in rows.iter_mut().enumerate() {
            let row = j + column + i;
            if row < w.n() {
                *from = w.element(row * w.tensor.spec.stride(1) + k.start);
                if k.len() < BLOCK {
                    // SAFETY: the row has these bytes, fewer than those of a whole block.
                    unsafe {
                        let to = padded.add(i * LONGEST);
                        to.write_bytes(0, LONGEST);
                        to.copy_from_nonoverlapping(*from, k.len() / elements * size);
                        *from = to;
                    }
                }
            }
        }
        // A function for each format: in one, the compiler's time grows with the square of their loops.
        let s = s.wide();
        format!(dtype, F => s.outline(
            #[inline(always)]
            // SAFETY: each of the rows is readable for a whole block.
            || unsafe {
                if const { S::RUNS && F::STEPS != 0 } {
                    int8_runs::columns_of::<S::Wide, F>(s, &rows, column, to);
                } else {
                    columns_of::<S::Wide, F>(s, dtype, &rows, column, to);
                }
            },
        ));
    }
}

/// 16 columns of a panel: their bytes turned as they are stored in vectors, then scaled by 16-bit arithmetic.
///
/// # Safety
/// `rows` are readable for 256 elements; `to` is writable.
#[inline(always)]
unsafe fn columns_of<S: Simd, F: Format>(s: S, dtype: DType, rows: &[*const u8; 16], column: usize, to: *mut Panel) {
    let mut bytes = MaybeUninit::<[[f32; 64]; 16]>::uninit();
    let mut turned = MaybeUninit::<[[f32; 16]; 64]>::uninit();
    let mut factors = MaybeUninit::<[[[f32; 16]; 16]; 4]>::uninit(); // scales and mins by rows, by groups
    let (bytes, turned) = (bytes.as_mut_ptr().cast::<f32>(), turned.as_mut_ptr().cast::<f32>());
    let factors = factors.as_mut_ptr().cast::<f32>();
    let (scales, mins) = (factors.wrapping_add(512), factors.wrapping_add(768));
    let kept = kept(dtype);
    // SAFETY: indices stay inside the buffers, which hold 16 vectors of 16 lanes for each thing that is turned.
    unsafe {
        for (i, &row) in rows.iter().enumerate() {
            let (u, scale, offset) = F::unpack(s, row);
            let mut v = 0;
            while v < 4 {
                // What is stored as it is comes from formats whose bytes have this offset.
                let u = if kept && S::SIGNED { s.shift_bytes(u[v]) } else { u[v] };
                s.store(bytes.add(i * 64 + v * 16), s.of_bits(u));
                v += 1;
            }
            s.store(factors.add(i * 16), scale);
            if F::MINS {
                s.store(factors.add(256 + i * 16), F::mins(s, offset));
            }
        }
        let q = (&raw mut (*to).q).cast::<f32>().add(column); // four bytes at a time
        s.transpose(factors, 16, scales, 16);
        if kept {
            // Nothing to round, and in order.
            for v in 0..4 {
                s.transpose(bytes.add(v * 16), 64, q.add(v * 16 * PANEL), PANEL);
            }
            for g in 0..GROUPS {
                let scale = (&raw mut (*to).scale[g]).cast::<f32>().add(column);
                s.store(scale, s.load(scales.add(g * (32 / F::GROUP) * 16)));
            }
            return;
        }
        if F::MINS {
            s.transpose(factors.add(256), 16, mins, 16);
        }
        for v in 0..4 {
            s.transpose(bytes.add(v * 16), 64, turned.add(v * 256), 16);
        }
        // Of each run of 16 elements, where it lies.
        let place = const {
            let (mut place, mut i) = ([0; 16], 0);
            while i < 16 {
                place[F::ORDER[i]] = i * 4;
                i += 1;
            }
            place
        };
        let quads = F::GROUP / 4;
        let offset = s.splat(F::OFFSET as f32);
        let (mut largest, mut zero) = (s.zero(), s.zero());
        for g in 0..64 / quads {
            let (mut low, mut high) = (s.splat_i(-1), s.splat_i(0));
            for p in g * quads..(g + 1) * quads {
                let u = s.bits(s.load(turned.add((place[p / 4] + p % 4) * 16)));
                (low, high) = (s.min_u8(low, u), s.max_u8(high, u));
            }
            low = s.min_u8(low, s.shr::<16>(low));
            high = s.max_u8(high, s.shr::<16>(high));
            low = s.min_u8(low, s.shr::<8>(low));
            high = s.max_u8(high, s.shr::<8>(high));
            let scale = s.load(scales.add(g * 16));
            let min = if F::MINS { s.load(mins.add(g * 16)) } else { s.zero() };
            for end in [low, high] {
                let u = s.sub(s.float(s.and(end, s.splat_i(255))), offset);
                let x = s.sub(s.mul(scale, u), min);
                largest = s.max(s.abs(x), largest);
                zero = s.fma(x, s.zero(), zero);
            }
        }
        let (least, steps, fixed) = (s.splat(1e-36), s.splat(127.0), s.splat(256.0));
        let inverse = s.select(s.lt(least, largest), s.div(steps, largest), s.zero());
        let scale = s.fma(largest, s.splat(1.0 / 127.0), zero);
        s.store((&raw mut (*to).scale).cast::<f32>().add(column), scale);
        for g in 0..64 / quads {
            // 256 q = factor u + start, where u - OFFSET is what is scaled: rounded, but for the low byte of the sum.
            let factor = s.to_i(s.mul(s.mul(s.load(scales.add(g * 16)), inverse), fixed));
            let min = if F::MINS { s.load(mins.add(g * 16)) } else { s.zero() };
            let min = s.to_i(s.mul(s.mul(min, inverse), fixed));
            let start =
                s.sub_i(s.splat_i(added::<S>() * 256 + 128), s.add_i(min, s.mul_i(factor, s.splat_i(F::OFFSET))));
            let low = s.splat_i(0xffff);
            let factor = s.or(s.and(factor, low), s.shl::<16>(factor));
            let start = s.or(s.and(start, low), s.shl::<16>(start));
            for p in g * quads..(g + 1) * quads {
                let u = s.bits(s.load(turned.add((place[p / 4] + p % 4) * 16)));
                let byte = s.splat_i(0x00ff_00ff);
                let even = s.multiply_add_16(s.and(u, byte), factor, start);
                let odd = s.multiply_add_16(s.and(s.shr::<8>(u), byte), factor, start);
                let both = s.or(s.and(s.shr::<8>(even), byte), s.and(odd, s.splat_i(0xff00_ff00u32 as i32)));
                s.store(q.add(p * PANEL), s.of_bits(both));
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
    /// What the next panel is made from.
    pub(super) ahead: Ahead,
}

impl Ahead {
    /// Asks for some of the runs, as far as a panel has them.
    #[inline(always)]
    fn ask<S: Simd>(self, s: S, rows: Range<usize>) {
        for row in rows.start..rows.end.min(self.runs).min(PANEL) {
            // One line more than is long: a run may begin anywhere in the first.
            for at in (0..self.run + 63).step_by(64) {
                s.prefetch(self.from.wrapping_add(row * self.pitch + at));
            }
        }
    }
}

/// `rows` rows by a panel of a weight of this dtype.
///
/// # Safety
/// `a` holds `rows` rows made for the dtype, `b` its panel, `c` `rows` rows of PANEL at the pitch.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(s: S, dtype: DType, rows: usize, t: Tile) {
    if !S::DOTS {
        return; // never planned, and so never compiled
    }
    let (mut i, mut asked) = (0, 0);
    let steps = int8_runs::steps::<S>(dtype);
    let tallest = if steps > 0 { int8_runs::TALLEST } else { TALLEST };
    let each = PANEL.div_ceil(rows.div_ceil(tallest).max(1));
    // SAFETY: strips cover the rows in order; the caller's promise holds for each.
    unsafe {
        macro_rules! strips {
            ($($height:literal)*; $M:ident, $strip:ident => $columns:expr) => {{$(
                while rows - i >= $height {
                    const $M: usize = $height;
                    t.ahead.ask(s, asked..asked + each);
                    asked += each;
                    let $strip = Tile { a: t.a.add(i), c: t.c.add(i * t.pitch), ..t };
                    s.outline(
                        #[inline(always)]
                        || $columns,
                    );
                    i += $height;
                }
            )*}};
        }
        if const { S::RUNS } {
            let groups = format!(dtype, F => BLOCK / F::GROUP);
            match steps {
                4 => return strips!(3 2 1; M, strip => int8_runs::columns::<S, M, 4>(s, groups, strip)),
                2 => return strips!(3 2 1; M, strip => int8_runs::columns::<S, M, 2>(s, groups, strip)),
                1 => return strips!(3 2 1; M, strip => int8_runs::columns::<S, M, 1>(s, groups, strip)),
                _ => {}
            }
        }
        // Twelve sums and more, with what they need beside them.
        match (groups(dtype) == 1, const { (S::REGISTERS == 32, S::SIGNED) }) {
            (true, (true, _)) => strips!(12 4 2 1; M, strip => columns::<S, M, 1>(s, strip)),
            (true, (false, false)) => strips!(6 2 1; M, strip => columns::<S, M, 1>(s, strip)),
            (true, (false, true)) => strips!(4 2 1; M, strip => columns::<S, M, 1>(s, strip)),
            (false, (true, _)) => strips!(6 2 1; M, strip => columns::<S, M, GROUPS>(s, strip)),
            (false, (false, _)) => strips!(4 2 1; M, strip => columns::<S, M, GROUPS>(s, strip)),
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
                    acc[i] = if S::SIGNED {
                        [s.dot_signed(acc[i][0], b0, x), s.dot_signed(acc[i][1], b1, x)]
                    } else {
                        [s.dot(acc[i][0], b0, x), s.dot(acc[i][1], b1, x)]
                    };
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
            finish(s, t, (i, j), sums[i]);
            i += 1;
        }
    }
}

/// Two vectors of sums of row i, from column j on, times the row's scale, added to what came before.
///
/// # Safety
/// The tile has the row and the columns.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd>(s: S, t: Tile, (i, j): (usize, usize), sums: [S::F; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = s.splat((*t.a.add(i)).scale);
        let mut v = 0;
        while v < 2 {
            let c = t.c.add(i * t.pitch + j + v * S::LANES);
            let sum = s.mul(sums[v], scale);
            s.store(c, if t.first { sum } else { s.add(s.load(c), sum) });
            v += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cpu::{
            kernel::Tensor,
            matmul::format::drawn::{normal, weight},
            simd::{Isa, dots},
        },
        layout::Spec,
        op::Rng,
    };

    fn keeps_scales<S: Simd>(_s: S, dtype: DType) -> bool {
        kept(dtype) || int8_runs::steps::<S>(dtype) > 0
    }

    /// Rows and columns that fill no strip and no panel, and a last block that is not whole.
    #[test]
    fn every_format_as_its_decoded_numbers() {
        let (m, n, mut rng) = (15, 20, Rng(3));
        let types = DType::ALL.iter().filter(|d| d.is_quantized() || **d == DType::I8);
        let isas = Isa::available().into_iter().filter(|isa| isa.dots());
        let cases = isas.flat_map(|isa| types.clone().flat_map(move |t| [false, true].map(|heavy| (isa, t, heavy))));
        for (isa, &dtype, heavy) in cases {
            let k = 2 * BLOCK + dtype.block().0;
            let x = normal(m * k, &mut rng);
            let (mut bytes, decoded) = weight(dtype, n * k, heavy, &mut rng);
            let spec = Spec::new(dtype, &[n, k]).unwrap();
            let w = Weight { tensor: Tensor::new(bytes.as_mut_ptr(), &spec), offset: 0, packed: None, scales: None };
            let mut rows: Vec<Row> = Vec::with_capacity(m);
            let mut columns: Vec<Panel> = Vec::with_capacity(1);
            let mut c = vec![0f32; m * PANEL];
            for p in (0..k).step_by(BLOCK) {
                let len = BLOCK.min(k - p);
                for i in 0..m {
                    let mut part = [0f32; BLOCK];
                    part[..len].copy_from_slice(&x[i * k + p..][..len]);
                    // SAFETY: there is room for m rows.
                    dots!(isa, s => unsafe { row(s, dtype, part.as_ptr(), rows.as_mut_ptr().add(i)) });
                }
                let (a, b) = (rows.as_ptr(), columns.as_mut_ptr());
                let (c, ahead) = (c.as_mut_ptr(), Ahead::NONE);
                let tile = Tile { a, b, k: len, c, pitch: PANEL, first: p == 0, ahead };
                // SAFETY: the weight has these rows and elements; the buffers are those of the tile.
                dots!(isa, s => unsafe {
                    panel(s, &w, 0, p..p + len, b);
                    multiply(s, dtype, m, tile);
                });
            }
            let mut power = (0.0, 0.0);
            for (i, x) in x.chunks_exact(k).enumerate() {
                for (j, w) in decoded.chunks_exact(k).enumerate() {
                    let want: f64 = x.iter().zip(w).map(|(&x, &w)| x as f64 * w as f64).sum();
                    power.0 += (want - c[i * PANEL + j] as f64).powi(2);
                    power.1 += want * want;
                }
                assert!(c[i * PANEL + n..][..PANEL - n].iter().all(|&c| c == 0.0), "{} {dtype}", isa.name());
            }
            println!("{} {dtype} {heavy}: {:.2e}", isa.name(), power.0 / power.1);
            // The operation allows 5e-4.
            let bound = match (dots!(isa, s => keeps_scales(s, dtype)), heavy) {
                (true, _) => 8e-5,
                (false, true) => 4e-4,
                (false, false) => 1.5e-4,
            };
            let nmse = power.0 / power.1;
            assert!(nmse < bound, "{} {dtype}, {heavy}: {nmse:.2e}", isa.name());
        }
    }
}
