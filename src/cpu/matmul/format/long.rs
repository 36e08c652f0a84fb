//! The formats with blocks of 256 elements.

use super::{
    Format, Integers, chosen, constant, double, half, lanes, nibbles,
    short::{BY_HALVES, I8, halves, levels},
    word,
};
use crate::{cpu::simd::Simd, quant::iq4_nl_levels};

/// N words of each of 16 rows, from byte `at` on.
#[inline(always)]
unsafe fn words<S: Simd, const N: usize>(s: S, rows: &[*const u8; 16], at: usize) -> [S::I; N] {
    let mut words = [[0u32; 16]; N];
    let mut all = [s.splat_i(0); N];
    // SAFETY: the caller has the bytes of each row, and 16 lanes.
    unsafe {
        for (i, row) in rows.iter().enumerate() {
            for (w, words) in words.iter_mut().enumerate() {
                words[i] = u32::from_le(row.add(at + 4 * w).cast::<u32>().read_unaligned());
            }
        }
        for (to, words) in all.iter_mut().zip(&words) {
            *to = s.bits(s.load(words.as_ptr().cast()));
        }
    }
    all
}

/// The scale at byte `at` of each of 16 rows.
#[inline(always)]
unsafe fn each_half<S: Simd>(s: S, rows: &[*const u8; 16], at: usize) -> S::F {
    let mut bits = [0u16; 16];
    // SAFETY: the caller has the bytes of each row, and 16 lanes.
    unsafe {
        for (bits, row) in bits.iter_mut().zip(rows) {
            *bits = u16::from_le(row.add(at).cast::<u16>().read_unaligned());
        }
        s.load_f16(bits.as_ptr())
    }
}

/// Four vectors from two bits for each element, which [`BY_PAIRS`] says the order of.
#[inline(always)]
unsafe fn pairs<S: Simd>(s: S, p: *const u8) -> [S::I; 4] {
    let two = s.splat_i(0x0303_0303);
    // SAFETY: the caller has 64 bytes.
    let q = unsafe { s.bits(s.load(p.cast())) };
    [s.and(q, two), s.and(s.shr::<2>(q), two), s.and(s.shr::<4>(q), two), s.and(s.shr::<6>(q), two)]
}
const BY_PAIRS: [usize; 16] = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15];

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct IQ4_XS;
impl Format for IQ4_XS {
    const ORDER: [usize; 16] = BY_HALVES;
    const OFFSET: i32 = 128;
    const STEPS: usize = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: d, 2 bytes of the scales' high bits, 4 of their low ones, 128 of nibbles.
        unsafe {
            let mut high = u16::from_le_bytes(p.add(2).cast::<[u8; 2]>().read()) as u64;
            // A byte for each.
            high = (high | high << 24) & 0x0000_00ff_0000_00ff;
            high = (high | high << 12) & 0x000f_000f_000f_000f;
            high = (high | high << 6) & 0x0303_0303_0303_0303;
            let codes = lanes(s, nibbles(word(p.add(4)) as u64) | (high << 4) as u128);
            let codes = s.sub_i(codes, s.splat_i(32));
            let scales = s.mul(s.float(codes), half(s, p));
            (levels(s, &iq4_nl_levels(), 128, halves(s, p.add(8), 16)), scales, scales)
        }
    }
}

pub(in super::super) struct TQ2_0;
impl Format for TQ2_0 {
    const ORDER: [usize; 16] = BY_PAIRS;
    const OFFSET: i32 = 1;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: 64 bytes of pairs, d.
        unsafe {
            let d = half(s, p.add(64));
            (pairs(s, p), d, d)
        }
    }
}

pub(in super::super) struct TQ1_0;
impl Format for TQ1_0 {
    const OFFSET: i32 = 1;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // Powers of three of four lanes each, the last one's of a lane each.
        const POWERS: [[i32; 16]; 4] = [
            powers([1, 1, 3, 3], [3; 4]),
            powers([9, 9, 27, 27], [27; 4]),
            powers([81, 81, 1, 3], [3; 4]),
            powers([9, 27, 81, 0], [1, 3, 9, 27]),
        ];
        const LAST: [i32; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1];
        let mut u = [s.splat_i(0); 4];
        // SAFETY: 48 bytes of five numbers, 4 of four, d.
        unsafe {
            let (first, next) = (s.load_runs::<32>(p, 0), s.load_runs::<16>(p.add(32), 0));
            let last = s.splat_i(word(p.add(48)) as i32);
            let last = chosen(s, next, last, &LAST);
            let bytes = [first, first, halves_of(s, first, next), last];
            let mut v = 0;
            while v < 4 {
                u[v] = thirds(s, bytes[v], constant(s, &POWERS[v]));
                v += 1;
            }
            let d = half(s, p.add(52));
            (u, d, d)
        }
    }
}

/// Lanes of twice 16 bits.
const fn powers(fours: [i32; 4], last: [i32; 4]) -> [i32; 16] {
    let (mut all, mut i) = ([0; 16], 0);
    while i < 16 {
        all[i] = 0x1_0001 * if i < 12 { fours[i / 4] } else { last[i % 4] };
        i += 1;
    }
    all
}

/// A byte is a fraction of 256: multiplied by a power of three, what is left of it below a whole, times three, has a number as its whole part.
#[inline(always)]
fn thirds<S: Simd>(s: S, bytes: S::I, power: S::I) -> S::I {
    let (zero, low) = (s.splat_i(0), s.splat_i(0x00ff_00ff));
    let even = s.and(s.multiply_add_16(s.and(bytes, low), power, zero), low);
    let odd = s.and(s.multiply_add_16(s.and(s.shr::<8>(bytes), low), power, zero), low);
    let (even, odd) = (s.add_i(even, s.shl::<1>(even)), s.add_i(odd, s.shl::<1>(odd)));
    s.or(s.and(s.shr::<8>(even), s.splat_i(0x0003_0003)), s.and(odd, s.splat_i(0x0300_0300)))
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct Q2_K;
impl Format for Q2_K {
    const ORDER: [usize; 16] = BY_PAIRS;
    const GROUP: usize = 16;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn integers<S: Simd>(s: S, rows: &[*const u8; 16]) -> Option<Integers<S>> {
        // SAFETY: 16 bytes of groups, 64 of pairs, d, dmin.
        let (codes, scale, min) =
            unsafe { (words::<S, 4>(s, rows, 0), each_half(s, rows, 80), each_half(s, rows, 82)) };
        let (four, mut scales, mut mins, mut w) = (s.splat_i(15), [s.splat_i(0); 16], [s.splat_i(0); 16], 0);
        while w < 4 {
            macro_rules! bytes {
                ($($i:literal $low:literal $high:literal;)*) => {$(
                    scales[4 * w + $i] = s.and(s.shr::<$low>(codes[w]), four);
                    mins[4 * w + $i] = s.and(s.shr::<$high>(codes[w]), four);
                )*};
            }
            bytes!(0 0 4; 1 8 12; 2 16 20; 3 24 28;);
            w += 1;
        }
        Some(Integers { scales, scale, mins, min })
    }

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: 16 bytes of groups, 64 of pairs, d, dmin.
        unsafe {
            let codes = s.load_u8(p);
            let scales = s.mul(s.float(s.and(codes, s.splat_i(15))), half(s, p.add(80)));
            (pairs(s, p.add(16)), scales, s.mul(s.float(s.shr::<4>(codes)), half(s, p.add(82))))
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct Q3_K;
impl Format for Q3_K {
    const ORDER: [usize; 16] = BY_PAIRS;
    const GROUP: usize = 16;
    const OFFSET: i32 = 4;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let third = s.splat_i(0x0404_0404);
        // SAFETY: 32 bytes of third bits, 64 of pairs, 12 of groups, d.
        unsafe {
            // Bit 4 h + p of byte i belongs to element 128 h + 32 p + i; the upper halves of the vectors are of h = 1.
            let bits = s.load_runs::<32>(p, 0);
            let bits = halves_of(s, bits, s.shr::<4>(bits));
            let [u0, u1, u2, u3] = pairs(s, p.add(32));
            let u = [
                s.or(u0, s.and(s.shl::<2>(bits), third)),
                s.or(u1, s.and(s.shl::<1>(bits), third)),
                s.or(u2, s.and(bits, third)),
                s.or(u3, s.and(s.shr::<1>(bits), third)),
            ];
            let (low, high) = (double(p.add(96)), word(p.add(104)) as u64);
            let nibbles = |q: u64| q & 0x0f0f_0f0f_0f0f_0f0f;
            let pairs = |q: u64| (q & 0x0303_0303) << 4;
            let first = nibbles(low) | pairs(high) | pairs(high >> 2) << 32;
            let last = nibbles(low >> 4) | pairs(high >> 4) | pairs(high >> 6) << 32;
            let codes = s.sub_i(lanes(s, first as u128 | (last as u128) << 64), s.splat_i(32));
            let scales = s.mul(s.float(codes), half(s, p.add(108)));
            (u, scales, scales)
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct Q4_K;
/// The upper eight lanes, twice.
const UPPER: [i32; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15];
/// Of each lane of the scales and offsets, the lane of what it is multiplied with: d, dmin.
const FACTORS: [i32; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];
impl Format for Q4_K {
    const ORDER: [usize; 16] = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
    const OFFSET: i32 = 0;
    const FIRST: usize = 8;

    #[inline(always)]
    fn mins<S: Simd>(s: S, offsets: S::F) -> S::F {
        s.permute(offsets, &UPPER)
    }

    #[inline(always)]
    unsafe fn integers<S: Simd>(s: S, rows: &[*const u8; 16]) -> Option<Integers<S>> {
        // SAFETY: blocks begin with their scales.
        Some(unsafe { k_integers(s, rows) })
    }

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let four = s.splat_i(0x0f0f_0f0f);
        // SAFETY: d, dmin, 12 bytes of groups, 128 of nibbles.
        unsafe {
            let scales = k_scales(s, p);
            let (a, b) = (s.bits(s.load(p.add(16).cast())), s.bits(s.load(p.add(80).cast())));
            let high = [s.and(s.shr::<4>(a), four), s.and(s.shr::<4>(b), four)];
            ([s.and(a, four), high[0], s.and(b, four), high[1]], scales, scales)
        }
    }
}

/// The groups of 16 rows of Q4_K or Q5_K.
#[inline(always)]
unsafe fn k_integers<S: Simd>(s: S, rows: &[*const u8; 16]) -> Integers<S> {
    // SAFETY: the caller has 16 blocks: d, dmin, 12 bytes of groups, and more.
    let ([g0, g1, g2], scale, min) =
        unsafe { (words::<S, 3>(s, rows, 4), each_half(s, rows, 0), each_half(s, rows, 2)) };
    let (six, four, two) = (s.splat_i(0x3f), s.splat_i(15), s.splat_i(0x30));
    let (mut scales, mut mins) = ([s.splat_i(0); 16], [s.splat_i(0); 16]);
    macro_rules! groups {
        ($($g:literal: $byte:literal $nibble:literal $pair:literal;)*) => {$(
            scales[$g] = s.and(s.shr::<$byte>(g0), six);
            mins[$g] = s.and(s.shr::<$byte>(g1), six);
            let (low, high) = (s.shr::<$byte>(g2), s.shr::<$nibble>(g2));
            scales[$g + 4] = s.or(s.and(low, four), s.and(s.shr::<$pair>(g0), two));
            mins[$g + 4] = s.or(s.and(high, four), s.and(s.shr::<$pair>(g1), two));
        )*};
    }
    // The upper two bits of a byte are bits 4 and 5 of the group four further on.
    groups!(0: 0 4 2; 1: 8 12 10; 2: 16 20 18; 3: 24 28 26;);
    Integers { scales, scale, mins, min }
}

/// Scales and offsets of the groups of Q4_K and Q5_K, from their first 16 bytes.
#[inline(always)]
unsafe fn k_scales<S: Simd>(s: S, p: *const u8) -> S::F {
    // SAFETY: the caller has a block: d, dmin, 12 bytes of groups, and more.
    unsafe {
        let (g0, g1, g2) = (word(p.add(4)), word(p.add(8)), word(p.add(12)));
        let low = |g: u32| (g & 0x3f3f_3f3f) as u128;
        let high = |low: u32, g: u32| (low & 0x0f0f_0f0f | g >> 2 & 0x3030_3030) as u128;
        let groups = low(g0) | high(g2, g0) << 32 | low(g1) << 64 | high(g2 >> 4, g1) << 96;
        let factors = s.permute(s.load_f16(p.cast()), &FACTORS);
        s.mul(s.float(lanes(s, groups)), factors)
    }
}

/// The lower half of one, the upper half of the other.
#[inline(always)]
fn halves_of<S: Simd>(s: S, low: S::I, high: S::I) -> S::I {
    chosen(s, low, high, &[0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1])
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct Q5_K;
impl Format for Q5_K {
    const ORDER: [usize; 16] = Q4_K::ORDER;
    const OFFSET: i32 = 0;
    const FIRST: usize = 8;

    #[inline(always)]
    fn mins<S: Simd>(s: S, offsets: S::F) -> S::F {
        Q4_K::mins(s, offsets)
    }

    #[inline(always)]
    unsafe fn integers<S: Simd>(s: S, rows: &[*const u8; 16]) -> Option<Integers<S>> {
        // SAFETY: blocks begin with their scales.
        Some(unsafe { k_integers(s, rows) })
    }

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let (four, fifth) = (s.splat_i(0x0f0f_0f0f), s.splat_i(0x1010_1010));
        // SAFETY: 16 bytes of scales, 32 of fifth bits, 128 of nibbles.
        unsafe {
            let scales = k_scales(s, p);
            // Bit g of a byte belongs to group g; the upper halves of the vectors are of the group after the next.
            let bits = s.load_runs::<32>(p.add(16), 0);
            let bits = halves_of(s, bits, s.shr::<2>(bits));
            let (a, b) = (s.bits(s.load(p.add(48).cast())), s.bits(s.load(p.add(112).cast())));
            let u = [
                s.or(s.and(a, four), s.and(s.shl::<4>(bits), fifth)),
                s.or(s.and(s.shr::<4>(a), four), s.and(s.shl::<3>(bits), fifth)),
                s.or(s.and(b, four), s.and(bits, fifth)),
                s.or(s.and(s.shr::<4>(b), four), s.and(s.shr::<1>(bits), fifth)),
            ];
            (u, scales, scales)
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct Q6_K;
impl Format for Q6_K {
    const ORDER: [usize; 16] = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15];
    const GROUP: usize = 16;
    const OFFSET: i32 = 32;
    const STEPS: usize = 2;

    #[inline(always)]
    unsafe fn integers<S: Simd>(s: S, rows: &[*const u8; 16]) -> Option<Integers<S>> {
        // SAFETY: 16 bytes of scales, d.
        let (codes, scale) = unsafe { (words::<S, 4>(s, rows, 192), each_half(s, rows, 208)) };
        let (mut scales, mut w) = ([s.splat_i(0); 16], 0);
        while w < 4 {
            scales[4 * w] = s.sar::<24>(s.shl::<24>(codes[w]));
            scales[4 * w + 1] = s.sar::<24>(s.shl::<16>(codes[w]));
            scales[4 * w + 2] = s.sar::<24>(s.shl::<8>(codes[w]));
            scales[4 * w + 3] = s.sar::<24>(codes[w]);
            w += 1;
        }
        Some(Integers { scales, scale, mins: [s.splat_i(0); 16], min: s.zero() })
    }

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let (four, two) = (s.splat_i(0x0f0f_0f0f), s.splat_i(0x3030_3030));
        // SAFETY: 128 bytes of low bits, 64 of high ones, 16 of scales, d.
        unsafe {
            let (a, b) = (s.load_runs::<32>(p, 64), s.load_runs::<32>(p.add(32), 64));
            let high = s.bits(s.load(p.add(128).cast()));
            let u = [
                s.or(s.and(a, four), s.and(s.shl::<4>(high), two)),
                s.or(s.and(b, four), s.and(s.shl::<2>(high), two)),
                s.or(s.and(s.shr::<4>(a), four), s.and(high, two)),
                s.or(s.and(s.shr::<4>(b), four), s.and(s.shr::<2>(high), two)),
            ];
            let scales = s.mul(s.float(s.load_i8(p.add(192).cast())), half(s, p.add(208)));
            (u, scales, scales)
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(in super::super) struct Q8_K;
impl Format for Q8_K {
    const OFFSET: i32 = 128;
    const STEPS: usize = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: d, 256 bytes and more.
        unsafe {
            let (u, ..) = I8::unpack(s, p.add(4));
            let scales = s.splat(f32::from_le_bytes(p.cast::<[u8; 4]>().read()));
            (u, scales, scales)
        }
    }
}
