//! The formats with blocks of up to 128 elements, and plain bytes.

use super::{Format, chosen, double, lanes, word};
use crate::{
    cpu::simd::Simd,
    quant::{iq4_nl_levels, mx_levels},
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
    // SAFETY: the caller has eight blocks.
    unsafe {
        let bits = |i: usize| word(p.add(i * step)) as u64;
        let (mut u, mut h) = (halves(s, p.add(4), step), 0);
        while h < 2 {
            let [a, b, c, d] = [bits(4 * h), bits(4 * h + 1), bits(4 * h + 2), bits(4 * h + 3)];
            let low = a & 0xffff | (b & 0xffff) << 16 | (c & 0xffff) << 32 | d << 48;
            let high = a >> 16 | (b >> 16) << 16 | (c >> 16) << 32 | (d >> 16) << 48;
            let fifth = s.splat_i(0x1010_1010);
            u[2 * h] = s.or(u[2 * h], s.and(s.bytes_of_bits(low), fifth));
            u[2 * h + 1] = s.or(u[2 * h + 1], s.and(s.bytes_of_bits(high), fifth));
            h += 1;
        }
        u
    }
}

/// Plain bytes, which an operation may give scales of their own.
pub(in super::super) struct I8;
impl Format for I8 {
    const OFFSET: i32 = 128;
    const STEPS: usize = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
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
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: two blocks of a scale and 16 bytes.
        unsafe {
            let (mut u, mut v) = ([s.splat_i(0); 4], 0);
            while v < 4 {
                let bits = double(p.add(v / 2 * 18 + 2 + v % 2 * 8));
                u[v] = s.and(s.bytes_of_bits(bits), s.splat_i(0x0202_0202));
                v += 1;
            }
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
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
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
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
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
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
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
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: eight blocks of a scale, an offset and 16 bytes.
        unsafe { (halves(s, p.add(4), 20), eight_scales(s, p, 20), s.neg(eight_scales(s, p.add(2), 20))) }
    }
}

pub(in super::super) struct Q5_0;
impl Format for Q5_0 {
    const ORDER: [usize; 16] = BY_HALVES;
    const OFFSET: i32 = 16;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
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
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
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
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
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
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let (mut exponents, mut i) = (0u64, 0);
        // SAFETY: eight blocks of a scale and 16 bytes.
        unsafe {
            while i < 8 {
                exponents |= (*p.add(17 * i) as u64) << (8 * i);
                i += 1;
            }
            // 2^(e - 128) as a product of two, neither of which is out of the range of f32. Lanes without a group get 1: subnormal products are slow.
            let e = lanes(s, exponents as u128 | 0x8080_8080_8080_8080 << 64);
            let (half, bias) = (s.shr::<1>(e), s.splat_i(63));
            let (a, b) = (s.add_i(half, bias), s.add_i(s.sub_i(e, half), bias));
            let scales = s.mul(s.of_bits(s.shl::<23>(a)), s.of_bits(s.shl::<23>(b)));
            (levels(s, &mx_levels(), 12, halves(s, p.add(1), 17)), scales, scales)
        }
    }
}

pub(in super::super) struct NVFP4;
impl Format for NVFP4 {
    const GROUP: usize = 16;
    const OFFSET: i32 = 12;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // The low nibbles of 8 bytes, then the high ones.
        const TWICE: [i32; 16] = [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7];
        const HIGH: [i32; 16] = [0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1];
        let (mut q, mut bits, mut v) = ([s.splat_i(0); 4], [0u16; 16], 0);
        // SAFETY: four blocks of four scales and 32 bytes.
        unsafe {
            while v < 4 {
                let block = p.add(36 * v);
                let bytes = s.bits(s.permute(s.of_bits(s.load_runs::<32>(block.add(4), 0)), &TWICE));
                q[v] = s.and(chosen(s, bytes, s.shr::<4>(bytes), &HIGH), s.splat_i(0x0f0f_0f0f));
                let mut g = 0;
                while g < 4 {
                    // As a half it is 2^8 times smaller, also where it is subnormal. NaN counts as 0.
                    let scale = *block.add(g) & 0x7f;
                    bits[4 * v + g] = if scale == 0x7f { 0 } else { (scale as u16) << 7 };
                    g += 1;
                }
                v += 1;
            }
            let scales = s.mul(s.load_f16(bits.as_ptr()), s.splat(128.0));
            (levels(s, &mx_levels(), 12, q), scales, scales)
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
