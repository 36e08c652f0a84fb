//! Products of 8-bit integers where an instruction adds pairs of products in 16 bits (AVX2 without VNNI): as [`int8`](super::int8), but a panel has the
//! format's own small numbers, and each run of 16 elements a factor of its own, so that nothing is rounded to a common scale.
//!
//! ```text
//! Row of x:  | q: i8 [256], runs of 16 as in Format::ORDER | sums: f32 [16], of groups, in order | scale: f32 |
//! Panel:     | u: u8 [64][32 columns][4 of k] | factors: i16 [16 runs][32][the same twice] | offsets: f32 [16 groups][32] | scale: f32 [32] |
//! ```
//!
//! `sum x w = x.scale (w.scale * (sum over runs of factor * sum x.q u) - sum over groups of offset * x.sums)`. Where a format's scales are whole numbers
//! times one of the block ([`Format::integers`]), those are the factors; else they are 2047ths (of 6 bits 1023rds, of 7 511ths) of the largest of the
//! block, which adds less than 1e-6 to the squared error.
//!
//! A run of 16 by 8 columns is 4 products of bytes, 3 additions, a product with the factor and an addition: 18 instructions for 256 products of numbers
//! of up to 5 bits, 20 of 6, 24 of 7, where signed bytes of 8 bits with a common scale take 34. Normalized squared error of any format, x in 8 bits
//! included, normal weights or heavy tails: 4e-5 to 7e-5.
//!
//! Zen 3, one thread, 4096 x 4096, the least of several runs by turns with a common scale, ms: 512 rows by q4_k 152 and 100, q4_0 144 and 100, q6_k 147 and
//! 109 (at the int8 peak of 189 GOP/s, of products that need no factors, 91); 32 rows by q4_k 10.8 and 7.0, q6_k 8.5 and 7.5; 8 rows by q4_k 3.4 and 2.8,
//! of which whole numbers as factors save 0.4. Other tenants had a share of the machine: single runs vary by a quarter.

use std::mem::MaybeUninit;

use super::{
    format::{Format, format},
    int8::{PANEL, Panel, Row, Tile, finish},
    int8_rows::ordered,
    tile::BLOCK,
};
use crate::{cpu::simd::Simd, dtype::DType};

/// [`Format::STEPS`], 0 where the instruction set has no use for it.
pub(super) fn steps<S: Simd>(dtype: DType) -> usize {
    if S::RUNS { format!(dtype, F => F::STEPS) } else { 0 }
}

/// The largest factor: 16 sums of 16 bits by pairs stay below 2^31.
const fn largest_factor(steps: usize) -> i32 {
    512 * steps as i32 - 1
}

/// Rounds a block of x.
///
/// # Safety
/// As for [`int8::row`](super::int8::row).
#[inline(always)]
pub(super) unsafe fn row<S: Simd, F: Format>(s: S, x: *const f32, to: *mut Row) {
    // SAFETY: both hold a block.
    unsafe {
        let (scale, sums) = ordered::<S, F>(s, x, (&raw mut (*to).q).cast());
        (*to).scale = scale;
        (*to).sums = sums.map(|sum| sum as f32);
    }
}

/// 16 columns of a panel.
///
/// # Safety
/// `rows` are readable for 256 elements; `to` is writable.
#[inline(always)]
pub(super) unsafe fn columns_of<S: Simd, F: Format>(s: S, rows: &[*const u8; 16], column: usize, to: *mut Panel) {
    let mut bytes = MaybeUninit::<[[f32; 64]; 16]>::uninit();
    let mut factors = MaybeUninit::<[[[f32; 16]; 16]; 4]>::uninit(); // scales and mins by rows, by groups
    let (bytes, factors) = (bytes.as_mut_ptr().cast::<f32>(), factors.as_mut_ptr().cast::<f32>());
    let (scales, mins) = (factors.wrapping_add(512), factors.wrapping_add(768));
    // SAFETY: indices stay inside the buffers, which hold 16 vectors of 16 lanes for each thing that is turned.
    unsafe {
        let integers = F::integers(s, rows);
        for (i, &row) in rows.iter().enumerate() {
            let (u, scale, offset) = F::unpack(s, row);
            let mut v = 0;
            while v < 4 {
                s.store(bytes.add(i * 64 + v * 16), s.of_bits(u[v]));
                v += 1;
            }
            if integers.is_none() {
                s.store(factors.add(i * 16), scale);
                if F::MINS {
                    s.store(factors.add(256 + i * 16), F::mins(s, offset));
                }
            }
        }
        let q = (&raw mut (*to).q).cast::<f32>().add(column); // four bytes at a time
        for v in 0..4 {
            s.transpose(bytes.add(v * 16), 64, q.add(v * 16 * PANEL), PANEL);
        }
        let groups = BLOCK / F::GROUP;
        let (one, mut runs) = (&raw mut (*to).scale, [s.splat_i(0); 16]);
        let offsets = (&raw mut (*to).offsets).cast::<f32>().add(column);
        if let Some(all) = integers {
            s.store(one.cast::<f32>().add(column), all.scale);
            let offset = s.mul(all.scale, s.splat(F::OFFSET as f32));
            for (g, run) in runs.iter_mut().enumerate().take(groups) {
                let min = s.mul(s.float(all.mins[g]), all.min);
                let min = if F::OFFSET == 0 { min } else { s.fma(s.float(all.scales[g]), offset, min) };
                s.store(offsets.add(g * PANEL), min);
                *run = all.scales[g];
            }
        } else {
            s.transpose(factors, 16, scales, 16);
            if F::MINS {
                s.transpose(factors.add(256), 16, mins, 16);
            }
            let (mut largest, mut zero) = (s.zero(), s.zero());
            for g in 0..groups {
                let scale = s.load(scales.add(g * 16));
                largest = s.max(s.abs(scale), largest);
                zero = s.fma(scale, s.zero(), zero);
            }
            let most = s.splat(largest_factor(F::STEPS) as f32);
            let inverse = s.select(s.lt(s.splat(1e-36), largest), s.div(most, largest), s.zero());
            let unit = s.div(largest, most);
            s.store(one.cast::<f32>().add(column), s.add(unit, zero));
            let offset = s.mul(unit, s.splat(F::OFFSET as f32));
            for (g, run) in runs.iter_mut().enumerate().take(groups) {
                *run = s.to_i(s.mul(s.load(scales.add(g * 16)), inverse));
                let min = if F::MINS { s.load(mins.add(g * 16)) } else { s.zero() };
                s.store(offsets.add(g * PANEL), s.fma(s.float(*run), offset, min));
            }
        }
        for run in runs.iter_mut().take(groups) {
            *run = s.or(s.and(*run, s.splat_i(0xffff)), s.shl::<16>(*run));
        }
        for (r, run) in F::ORDER.iter().enumerate() {
            let factors = (&raw mut (*to).factors[r]).cast::<f32>().add(column);
            s.store(factors, s.of_bits(runs[(*run * 16 / F::GROUP) & 15]));
        }
    }
}

/// Rows of x that go through a panel together, as many as leave registers for what their 12 sums need.
pub(super) const TALLEST: usize = 3;

/// `M` rows by a panel, two vectors of columns at a time.
///
/// # Safety
/// As for [`int8::multiply`](super::int8::multiply).
#[inline(always)]
pub(super) unsafe fn columns<S: Simd, const M: usize, const STEPS: usize>(s: S, groups: usize, t: Tile) {
    for j in (0..PANEL).step_by(2 * S::LANES) {
        // SAFETY: 2 LANES divide PANEL, and rows are as far apart as stated.
        unsafe {
            let mut acc = [[s.splat_i(0); 2]; M];
            let a = (&raw const (*t.a).q).cast::<u8>();
            for r in 0..BLOCK / 16 {
                let b = (&raw const (*t.b).q[4 * r][j]).cast();
                let factors = (&raw const (*t.b).factors[r][j]).cast();
                s.add_run::<M, 2, STEPS>(&mut acc, (a.add(16 * r), size_of::<Row>()), b, factors);
            }
            let mut offsets = [[s.zero(); 2]; M];
            for g in 0..groups {
                let from = (&raw const (*t.b).offsets[g][j]).cast::<f32>();
                let offset = [s.load(from), s.load(from.add(S::LANES))];
                let mut i = 0;
                while i < M {
                    let sum = s.splat((*t.a.add(i)).sums[g & 15]);
                    offsets[i] = [s.fma(sum, offset[0], offsets[i][0]), s.fma(sum, offset[1], offsets[i][1])];
                    i += 1;
                }
            }
            let from = (&raw const (*t.b).scale[0][j]).cast::<f32>();
            let scale = [s.load(from), s.load(from.add(S::LANES))];
            let mut i = 0;
            while i < M {
                let mut sums = offsets[i];
                let mut v = 0;
                while v < 2 {
                    sums[v] = s.sub(s.mul(s.float(acc[i][v]), scale[v]), offsets[i][v]);
                    v += 1;
                }
                finish(s, t, (i, j), sums);
                i += 1;
            }
        }
    }
}
