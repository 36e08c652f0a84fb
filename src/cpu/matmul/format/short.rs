//! The formats with blocks of up to 128 elements, and plain bytes.

use super::Format;
use crate::{
    cpu::simd::Simd,
    dtype::DType,
    quant::{iq4_nl_levels, mx_levels, mx_power},
};

/// The scales that begin eight blocks of so many bytes; zeros behind them.
#[inline(always)]
unsafe fn eight_scales<S: Simd>(s: S, p: *const u8, step: usize) -> S::F {
    let mut bits = [0u16; 16];
    let mut i = 0;
    // SAFETY: the caller has eight blocks.
    unsafe {
        while i < 8 {
            bits[i] = u16::from_le_bytes(p.add(i * step).cast::<[u8; 2]>().read());
            i += 1;
        }
        s.load_f16(bits.as_ptr())
    }
}

/// Bytes of 0 and 1: the bits of some of `bytes`, those that `which` names eight times each.
#[inline(always)]
fn ones<S: Simd>(s: S, bytes: u128, which: &[u8; 64]) -> S::I {
    const BITS: [u8; 64] = {
        let (mut all, mut i) = ([0; 64], 0);
        while i < 64 {
            all[i] = 1 << (i % 8);
            i += 1;
        }
        all
    };
    // SAFETY: arrays of 64 bytes.
    let (which, bits) = unsafe { (s.bits(s.load(which.as_ptr().cast())), s.bits(s.load(BITS.as_ptr().cast()))) };
    let bytes = s.look_up(&bytes.to_le_bytes().map(|b| b as i8), which);
    s.min_u8(s.and(bytes, bits), s.splat_i(0x0101_0101))
}

/// Of 16 bytes those that lane `l` of 8 begins at `first + step * (l / 2) + l % 2`.
const fn eights(first: usize, step: usize) -> [u8; 64] {
    let (mut all, mut i) = ([0; 64], 0);
    while i < 64 {
        all[i] = (first + step * (i / 16) + i / 8 % 2) as u8;
        i += 1;
    }
    all
}

/// Of eight blocks of 32 signed bytes: four vectors of unsigned ones.
#[inline(always)]
unsafe fn bytes<S: Simd>(s: S, p: *const u8, step: usize) -> [S::I; 4] {
    let (mut u, mut v) = ([s.splat_i(0); 4], 0);
    while v < 4 {
        // SAFETY: the caller has eight blocks.
        u[v] = s.shift_bytes(unsafe { s.load_runs::<32>(p.add(2 * v * step), step) });
        v += 1;
    }
    u
}

/// Of eight blocks of 32 elements: four vectors in the order [`BY_HALVES`] from 16 bytes of nibbles each.
#[inline(always)]
pub(super) unsafe fn halves<S: Simd>(s: S, p: *const u8, step: usize) -> [S::I; 4] {
    let four = s.splat_i(0x0f0f_0f0f);
    // SAFETY: the caller has eight blocks.
    let (a, b) = unsafe { (s.load_runs::<16>(p, step), s.load_runs::<16>(p.add(4 * step), step)) };
    [s.and(a, four), s.and(s.shr::<4>(a), four), s.and(b, four), s.and(s.shr::<4>(b), four)]
}
pub(super) const BY_HALVES: [usize; 16] = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15];

/// The same with a fifth bit for each element, in the four bytes before the nibbles.
#[inline(always)]
unsafe fn fives<S: Simd>(s: S, p: *const u8, step: usize) -> [S::I; 4] {
    const LOW: [u8; 64] = eights(0, 4);
    const HIGH: [u8; 64] = eights(2, 4);
    // SAFETY: the caller has eight blocks.
    unsafe {
        let word = |i: usize| u32::from_le_bytes(p.add(i * step).cast::<[u8; 4]>().read()) as u128;
        let a = word(0) | word(1) << 32 | word(2) << 64 | word(3) << 96;
        let b = word(4) | word(5) << 32 | word(6) << 64 | word(7) << 96;
        let [u0, u1, u2, u3] = halves(s, p.add(4), step);
        [
            s.or(u0, s.shl::<4>(ones(s, a, &LOW))),
            s.or(u1, s.shl::<4>(ones(s, a, &HIGH))),
            s.or(u2, s.shl::<4>(ones(s, b, &LOW))),
            s.or(u3, s.shl::<4>(ones(s, b, &HIGH))),
        ]
    }
}

/// Plain bytes, which an operation may give scales of their own.
pub(in super::super) struct I8;
impl Format for I8 {
    const OFFSET: i32 = 128;
    const STEPS: usize = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let (mut u, mut v) = ([s.splat_i(0); 4], 0);
        while v < 4 {
            // SAFETY: 256 bytes.
            u[v] = s.shift_bytes(s.bits(unsafe { s.load(p.add(64 * v).cast()) }));
            v += 1;
        }
        (u, s.splat(1.0), s.splat(1.0))
    }
}

pub(in super::super) struct Q1_0;
impl Format for Q1_0 {
    const OFFSET: i32 = 1;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        const LOW: [u8; 64] = eights(0, 2);
        const HIGH: [u8; 64] = eights(8, 2);
        // SAFETY: two blocks of a scale and 16 bytes.
        unsafe {
            let (a, b) = (p.add(2).cast::<[u8; 16]>().read(), p.add(20).cast::<[u8; 16]>().read());
            let (a, b) = (u128::from_le_bytes(a), u128::from_le_bytes(b));
            let u = [ones(s, a, &LOW), ones(s, a, &HIGH), ones(s, b, &LOW), ones(s, b, &HIGH)];
            let u = [s.shl::<1>(u[0]), s.shl::<1>(u[1]), s.shl::<1>(u[2]), s.shl::<1>(u[3])];
            let d = |at: usize| u16::from_le_bytes(p.add(at).cast::<[u8; 2]>().read());
            let bits = [[d(0); 4], [d(18); 4], [0; 4], [0; 4]];
            let scales = s.load_f16(bits.as_ptr().cast());
            (u, scales, scales)
        }
    }
}

pub(in super::super) struct Q8_0;
impl Format for Q8_0 {
    const OFFSET: i32 = 128;
    const STEPS: usize = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: eight blocks of a scale and 32 bytes.
        unsafe {
            let scales = eight_scales(s, p, 34);
            (bytes(s, p.add(2), 34), scales, scales)
        }
    }
}

pub(in super::super) struct Q8_1;
impl Format for Q8_1 {
    const OFFSET: i32 = 128;
    const STEPS: usize = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: eight blocks of a scale, a sum and 32 bytes.
        unsafe {
            let scales = eight_scales(s, p, 36);
            (bytes(s, p.add(4), 36), scales, scales)
        }
    }
}

pub(in super::super) struct Q4_0;
impl Format for Q4_0 {
    const ORDER: [usize; 16] = BY_HALVES;
    const OFFSET: i32 = 8;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: eight blocks of a scale and 16 bytes.
        unsafe {
            let scales = eight_scales(s, p, 18);
            (halves(s, p.add(2), 18), scales, scales)
        }
    }
}

pub(in super::super) struct Q4_1;
impl Format for Q4_1 {
    const ORDER: [usize; 16] = BY_HALVES;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: eight blocks of a scale, an offset and 16 bytes.
        unsafe { (halves(s, p.add(4), 20), eight_scales(s, p, 20), s.neg(eight_scales(s, p.add(2), 20))) }
    }
}

pub(in super::super) struct Q5_0;
impl Format for Q5_0 {
    const ORDER: [usize; 16] = BY_HALVES;
    const OFFSET: i32 = 16;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: eight blocks of a scale, four bytes of fifth bits and 16 of nibbles.
        unsafe {
            let scales = eight_scales(s, p, 22);
            (fives(s, p.add(2), 22), scales, scales)
        }
    }
}

pub(in super::super) struct Q5_1;
impl Format for Q5_1 {
    const ORDER: [usize; 16] = BY_HALVES;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: eight blocks of a scale, an offset, four bytes of fifth bits and 16 of nibbles.
        unsafe { (fives(s, p.add(4), 24), eight_scales(s, p, 24), s.neg(eight_scales(s, p.add(2), 24))) }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct IQ4_NL;
impl Format for IQ4_NL {
    const ORDER: [usize; 16] = BY_HALVES;
    const OFFSET: i32 = 128;
    const STEPS: usize = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: eight blocks of a scale and 16 bytes.
        unsafe {
            let scales = eight_scales(s, p, 18);
            (levels(s, &iq4_nl_levels(), 128, halves(s, p.add(2), 18)), scales, scales)
        }
    }
}

pub(in super::super) struct MXFP4;
impl Format for MXFP4 {
    const ORDER: [usize; 16] = BY_HALVES;
    const OFFSET: i32 = 12;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let mut scales = [0f32; 16];
        // SAFETY: eight blocks of a scale and 16 bytes.
        unsafe {
            let mut i = 0;
            while i < 8 {
                scales[i] = mx_power(*p.add(17 * i));
                i += 1;
            }
            let scales = s.load(scales.as_ptr());
            (levels(s, &mx_levels(), 12, halves(s, p.add(1), 17)), scales, scales)
        }
    }
}

/// Levels of numbers below 16, plus `offset`.
#[inline(always)]
pub(super) fn levels<S: Simd>(s: S, levels: &[i8; 16], offset: u8, q: [S::I; 4]) -> [S::I; 4] {
    let (mut table, mut i) = (*levels, 0);
    while i < 16 {
        table[i] = table[i].wrapping_add(offset as i8);
        i += 1;
    }
    [s.look_up(&table, q[0]), s.look_up(&table, q[1]), s.look_up(&table, q[2]), s.look_up(&table, q[3])]
}
