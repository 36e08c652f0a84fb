//! The formats of grids, IQ1 to IQ3 (layouts: src/quant): points of eight or four bytes looked up, signs from bits. A number less than 64 is made
//! `63 + b` or `63 - b` without a carry between bytes, as the latter is `63 ^ b` (so with 15 in place of 63). An index has as many bits as its grid has
//! points, so that any bytes name one.

use super::{Format, constant, double, half, lanes, nibbles, word};
use crate::{cpu::simd::Simd, quant::grid_bytes};

/// `offset + b`, or less b where a bit of `signs` is set; `offset` is one less than a power of two, and no b above it.
#[inline(always)]
fn signed<S: Simd>(s: S, offset: i32, b: S::I, signs: u64) -> S::I {
    let offset = s.splat_i(offset * 0x0101_0101);
    let minus = s.and(s.bytes_of_bits(signs), offset);
    s.add_i(s.xor(b, minus), s.xor(minus, offset))
}

/// Eight signs from seven, in each byte: the last makes their number even.
#[inline(always)]
fn eighths<S: Simd>(s: S, signs: S::I) -> S::I {
    const PARITY: [i8; 16] = {
        let (mut all, mut i) = ([0; 16], 0u8);
        while i < 16 {
            all[i as usize] = if i.count_ones() % 2 == 1 { -128 } else { 0 };
            i += 1;
        }
        all
    };
    let folded = s.and(s.xor(signs, s.shr::<4>(signs)), s.splat_i(0x0f0f_0f0f));
    s.or(signs, s.look_up(&PARITY, folded))
}

/// The signs of eight groups of 32, from words whose low 28 bits are four times seven: of the first eight lanes.
#[inline(always)]
fn group_signs<S: Simd>(s: S, words: S::I) -> [u64; 8] {
    let first = s.and(words, s.splat_i(0x7f));
    let second = s.and(s.shl::<1>(words), s.splat_i(0x7f00));
    let third = s.and(s.shl::<2>(words), s.splat_i(0x7f_0000));
    let fourth = s.and(s.shl::<3>(words), s.splat_i(0x7f00_0000));
    let mut signs = [0u64; 8];
    // SAFETY: 64 bytes.
    unsafe {
        let bytes = eighths(s, s.or(s.or(first, second), s.or(third, fourth)));
        s.store(signs.as_mut_ptr().cast(), s.of_bits(bytes));
    }
    signs.map(u64::from_le)
}

/// `1 << (top - i * step - (i / 4 % 2) * jump)` for lane i: a product with it moves bits that each lane has elsewhere to the top.
const fn to_top(top: usize, step: usize, period: usize, jump: usize) -> [i32; 16] {
    let (mut all, mut i) = ([0; 16], 0);
    while i < 16 {
        all[i] = (1u32 << (top - i % period * step - i / 4 % 2 * jump)) as i32;
        i += 1;
    }
    all
}

/// Lane `first + i / each` for lane i.
const fn each(first: usize, each: usize) -> [i32; 16] {
    let (mut all, mut i) = ([0; 16], 0);
    while i < 16 {
        all[i] = (first + i / each) as i32;
        i += 1;
    }
    all
}

/// Scales of 4 bits, as IQ2 has them: `d (n + 1/2) / 4`.
#[inline(always)]
fn iq2_scales<S: Simd>(s: S, d: S::F, n: S::I) -> S::F {
    s.mul(s.mul(s.add(s.float(n), s.splat(0.5)), d), s.splat(0.25))
}

/// The odd words of eight pairs, the lowest lane first, above them the same again.
const ODD: [i32; 16] = [1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15];

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct IQ2_XXS;
impl Format for IQ2_XXS {
    const OFFSET: i32 = 63;
    const STEPS: usize = 1;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let mut u = [s.splat_i(0); 4];
        // SAFETY: d, and for each of eight groups four points and a word of signs and scale.
        unsafe {
            let q = p.add(2);
            let words = s.bits(s.permute(s.load(q.cast()), &ODD));
            let (signs, mut h) = (group_signs(s, words), 0);
            while h < 2 {
                let at = q.add(32 * h);
                let points = word(at) as u128
                    | (word(at.add(8)) as u128) << 32
                    | (word(at.add(16)) as u128) << 64
                    | (word(at.add(24)) as u128) << 96;
                let [a, b] = s.gather_eights(grid_bytes::IQ2_XXS.as_ptr(), lanes(s, points));
                u[2 * h] = signed(s, 63, a, signs[2 * h]);
                u[2 * h + 1] = signed(s, 63, b, signs[2 * h + 1]);
                h += 1;
            }
            let scales = iq2_scales(s, half(s, p), s.shr::<28>(words));
            (u, scales, scales)
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct IQ2_XS;
impl Format for IQ2_XS {
    const GROUP: usize = 16;
    const OFFSET: i32 = 63;
    const STEPS: usize = 1;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let mut u = [s.splat_i(0); 4];
        // SAFETY: d, 32 words of a point and seven signs, 8 bytes of scales.
        unsafe {
            let mut h = 0;
            while h < 2 {
                let words = s.bits(s.load_bf16(p.add(2 + 32 * h).cast())); // in the upper halves of the lanes
                let mut signs = [0u64; 2];
                s.store_i8(signs.as_mut_ptr().cast(), eighths(s, s.shr::<25>(words)));
                let points = s.and(s.shr::<16>(words), s.splat_i(511));
                let [a, b] = s.gather_eights(grid_bytes::IQ2_XS.as_ptr(), points);
                u[2 * h] = signed(s, 63, a, u64::from_le(signs[0]));
                u[2 * h + 1] = signed(s, 63, b, u64::from_le(signs[1]));
                h += 1;
            }
            let scales = iq2_scales(s, half(s, p), lanes(s, nibbles(double(p.add(66)))));
            (u, scales, scales)
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct IQ2_S;
impl Format for IQ2_S {
    const GROUP: usize = 16;
    const OFFSET: i32 = 63;
    const STEPS: usize = 1;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        const TOP: [i32; 16] = to_top(30, 2, 16, 0);
        let mut u = [s.splat_i(0); 4];
        // SAFETY: d, 32 bytes of points, as many of signs, 8 of the points' high bits, 8 of scales.
        unsafe {
            let mut h = 0;
            while h < 2 {
                let high = s.mul_i(s.splat_i(word(p.add(66 + 4 * h)) as i32), constant(s, &TOP));
                let points = s.or(s.load_u8(p.add(2 + 16 * h)), s.shl::<8>(s.shr::<30>(high)));
                let [a, b] = s.gather_eights(grid_bytes::IQ2_S.as_ptr(), points);
                u[2 * h] = signed(s, 63, a, double(p.add(34 + 16 * h)));
                u[2 * h + 1] = signed(s, 63, b, double(p.add(42 + 16 * h)));
                h += 1;
            }
            let scales = iq2_scales(s, half(s, p), lanes(s, nibbles(double(p.add(74)))));
            (u, scales, scales)
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct IQ3_XXS;
impl Format for IQ3_XXS {
    const OFFSET: i32 = 63;
    const STEPS: usize = 1;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let mut u = [s.splat_i(0); 4];
        // SAFETY: d, 64 bytes of points, eight words of signs and scale.
        unsafe {
            let words = s.load_runs::<32>(p.add(66), 0);
            let (signs, mut v) = (group_signs(s, words), 0);
            while v < 4 {
                let b = s.gather_fours(grid_bytes::IQ3_XXS.as_ptr(), s.load_u8(p.add(2 + 16 * v)));
                u[v] = signed(s, 63, b, signs[v]);
                v += 1;
            }
            let n = s.shr::<28>(words);
            let scales = s.mul(iq2_scales(s, half(s, p), n), s.splat(2.0));
            (u, scales, scales)
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct IQ3_S;
impl Format for IQ3_S {
    const OFFSET: i32 = 15;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        const TOP: [i32; 16] = to_top(15, 1, 16, 0);
        let mut u = [s.splat_i(0); 4];
        // SAFETY: d, 64 bytes of points, 8 of their ninth bits, 32 of signs, 4 of scales.
        unsafe {
            let ninth = double(p.add(66));
            let mut v = 0;
            while v < 4 {
                let bits = s.splat_i((ninth >> (16 * v)) as u16 as i32);
                let high = s.shr::<7>(s.multiply_add_16(bits, constant(s, &TOP), s.splat_i(0)));
                let points = s.or(s.load_u8(p.add(2 + 16 * v)), s.and(high, s.splat_i(256)));
                let b = s.gather_fours(grid_bytes::IQ3_S.as_ptr(), points);
                u[v] = signed(s, 15, b, double(p.add(74 + 8 * v)));
                v += 1;
            }
            let n = s.float(lanes(s, nibbles(word(p.add(106)) as u64)));
            let scales = s.mul(s.fma(n, s.splat(2.0), s.splat(1.0)), half(s, p));
            (u, scales, scales)
        }
    }
}

/// IQ1: coordinates of 8 times -1, 0, 1, shifted by 1 (where `minus`, all ones, by -1), plus 9.
#[inline(always)]
fn shifted<S: Simd>(s: S, b: S::I, minus: S::I) -> S::I {
    let less = s.add_i(s.splat_i(0x7676_7676), s.and(minus, s.splat_i(0x0202_0202)));
    s.sub_i(s.shift_bytes(b), less)
}

/// Moves three bits to the top: of a group of four lanes those from bits 0, 3, 6, 9 on, in the lower half of an even group's word, the upper of an odd
/// one's.
const THREES: [i32; 16] = to_top(29, 3, 4, 16);

/// Scales of three bits, `d (2 n + 1) / 8`.
#[inline(always)]
fn iq1_scales<S: Simd>(s: S, d: S::F, n: S::I) -> S::F {
    s.mul(s.mul(s.fma(s.float(n), s.splat(2.0), s.splat(1.0)), d), s.splat(0.125))
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct IQ1_S;
impl Format for IQ1_S {
    const OFFSET: i32 = 9;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // An even group's word is the lower half of a lane, an odd one's the upper half.
        const WORDS: [i32; 16] = {
            let (mut all, mut i) = ([0; 16], 0);
            while i < 16 {
                all[i] = if i % 2 == 0 { 1 << 16 } else { 1 };
                i += 1;
            }
            all
        };
        const HALVES: [i32; 16] =
            [1 << 16, 1 << 16, 1 << 16, 1 << 16, 1 << 16, 1 << 16, 1 << 16, 1 << 16, 1, 1, 1, 1, 1, 1, 1, 1];
        const EACH: [[i32; 16]; 2] = [each(0, 8), each(2, 8)];
        const ONE: [[i32; 16]; 4] = [[0; 16], [1; 16], [2; 16], [3; 16]];
        let mut u = [s.splat_i(0); 4];
        // SAFETY: d, 32 bytes of points, eight words: four times three high bits of points, three bits of scale, the shift's sign.
        unsafe {
            let words = s.of_bits(s.load_runs::<16>(p.add(34), 0));
            let mut h = 0;
            while h < 2 {
                let high = s.mul_i(s.bits(s.permute(words, &EACH[h])), constant(s, &THREES));
                let points = s.or(s.load_u8(p.add(2 + 16 * h)), s.shl::<8>(s.shr::<29>(high)));
                let b = s.gather_eights(grid_bytes::IQ1.as_ptr(), points);
                let mut v = 0;
                while v < 2 {
                    let sign = s.mul_i(s.bits(s.permute(words, &ONE[2 * h + v])), constant(s, &HALVES));
                    u[2 * h + v] = shifted(s, b[v], s.sar::<31>(sign));
                    v += 1;
                }
                h += 1;
            }
            let n = s.mul_i(s.bits(s.permute(words, &each(0, 2))), constant(s, &WORDS));
            let scales = iq1_scales(s, half(s, p), s.and(s.shr::<28>(n), s.splat_i(7)));
            (u, scales, scales)
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct IQ1_M;
impl Format for IQ1_M {
    const GROUP: usize = 16;
    const OFFSET: i32 = 9;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        const NIBBLES: [i32; 16] = to_top(28, 4, 8, 0);
        const EACH: [[i32; 16]; 2] = [each(0, 8), each(2, 8)];
        const TWICE: [[i32; 16]; 2] = [each(0, 2), each(8, 2)];
        let mut u = [s.splat_i(0); 4];
        // SAFETY: 32 bytes of points, 16 of a nibble for each (three high bits, the shift's sign), four words of four
        // scales of three bits and four bits of d.
        unsafe {
            let words = s.of_bits(s.load_runs::<16>(p.add(32), 0));
            let mut h = 0;
            while h < 2 {
                let nibble = s.mul_i(s.bits(s.permute(words, &EACH[h])), constant(s, &NIBBLES));
                let high = s.and(s.shr::<20>(nibble), s.splat_i(0x700));
                let b = s.gather_eights(grid_bytes::IQ1.as_ptr(), s.or(s.load_u8(p.add(16 * h)), high));
                let minus = s.of_bits(s.sar::<31>(nibble));
                let mut v = 0;
                while v < 2 {
                    u[2 * h + v] = shifted(s, b[v], s.bits(s.permute(minus, &TWICE[v])));
                    v += 1;
                }
                h += 1;
            }
            let tops = double(p.add(48)) >> 12 & 0x000f_000f_000f_000f;
            let d = s.splat(s.f16_to_f32((tops | tops >> 12 | tops >> 24 | tops >> 36) as u16));
            let words = s.of_bits(s.load_runs::<16>(p.add(40), 0));
            let n = s.shr::<29>(s.mul_i(s.bits(s.permute(words, &EACH[1])), constant(s, &THREES)));
            let scales = iq1_scales(s, d, n);
            (u, scales, scales)
        }
    }
}
