//! How 256 elements of a quantized weight become four vectors of unsigned bytes, with their scales: what the kernels of 8-bit products read.
//! Written for vectors of 64 bytes.
//!
//! `x = scale (u - OFFSET) - min`. The common formats have code of their own, all others go through the form of `cpu/unpack.rs`.
//! Elements come in the order in which the format's bits yield them: ORDER.

use std::slice;

use crate::{
    cpu::{
        simd::Simd,
        unpack::{Levels, unpack},
    },
    dtype::DType,
};

/// `format!(dtype, F => expression)`: the expression for the dtype's [`Format`].
macro_rules! format {
    ($dtype:expr, $F:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::Q8_0 => {
                type $F = $crate::cpu::matmul::format::Q8_0;
                $body
            }
            $crate::dtype::DType::Q4_0 => {
                type $F = $crate::cpu::matmul::format::Q4_0;
                $body
            }
            $crate::dtype::DType::Q4_K => {
                type $F = $crate::cpu::matmul::format::Q4_K;
                $body
            }
            $crate::dtype::DType::Q5_K => {
                type $F = $crate::cpu::matmul::format::Q5_K;
                $body
            }
            $crate::dtype::DType::Q6_K => {
                type $F = $crate::cpu::matmul::format::Q6_K;
                $body
            }
            _ => {
                type $F = $crate::cpu::matmul::format::Any;
                $body
            }
        }
    };
}
pub(super) use format;

/// How 256 elements of a weight become bytes.
pub(super) trait Format {
    /// Runs of 16 elements, in the order of the vectors' lanes.
    const ORDER: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    /// Elements that share a scale: 16 or 32.
    const GROUP: usize = 32;
    /// What is subtracted from a byte.
    const OFFSET: i32;
    /// Lane of the offsets that belongs to the first group.
    const FIRST: usize = 0;
    /// Of each vector's lanes, the lane of the scales that belongs to them.
    const GROUPS: [[i32; 16]; 4] = groups(Self::ORDER, Self::GROUP);

    /// Four vectors of unsigned bytes; a scale for each group; and, from lane FIRST on, what is multiplied with `-OFFSET` (or -1, where it is 0) times the
    /// sum of x over a group and added to the products of the bytes.
    ///
    /// # Safety
    /// `p` is readable for 256 elements.
    unsafe fn unpack<S: Simd>(s: S, dtype: DType, p: *const u8) -> ([S::I; 4], S::F, S::F);

    /// The groups' `min`, from what `unpack` gives.
    #[inline(always)]
    fn mins<S: Simd>(s: S, scales: S::F, offsets: S::F) -> S::F {
        s.mul(s.sub(offsets, scales), s.splat(Self::OFFSET as f32))
    }
}

/// Lanes of the scales, see [`Format::GROUPS`].
const fn groups(order: [usize; 16], group: usize) -> [[i32; 16]; 4] {
    let mut all = [[0; 16]; 4];
    let mut lane = 0;
    while lane < 64 {
        all[lane / 16][lane % 16] = (order[lane / 4] * 16 / group) as i32;
        lane += 1;
    }
    all
}

/// Every format, through the form that all kernels read.
pub(super) struct Any;
impl Format for Any {
    const GROUP: usize = 16;
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, dtype: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let sign = s.splat_i(0x8080_8080u32 as i32);
        let mut levels = Levels::ZERO;
        // SAFETY: the caller has the blocks, which give 256 levels; vectors are of 64 bytes.
        unsafe {
            unpack(s, dtype, slice::from_raw_parts(p, dtype.bytes(256).unwrap_or(0)), &mut levels);
            let mut u = [sign; 4];
            let mut v = 0;
            while v < 4 {
                u[v] = s.xor(s.bits(s.load(levels.q.as_ptr().add(64 * v).cast())), sign);
                v += 1;
            }
            let scales = s.load(levels.scale.as_ptr());
            // The sums are -128 times those of x.
            (u, scales, s.fma(s.load(levels.min.as_ptr()), s.splat(1.0 / 128.0), scales))
        }
    }
}

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

pub(super) struct Q8_0;
impl Q8_0 {
    /// Unsigned bytes, and eight scales.
    ///
    /// # Safety
    /// `p` is readable for eight blocks.
    #[inline(always)]
    pub(super) unsafe fn bytes<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F) {
        let sign = s.splat_i(0x8080_8080u32 as i32);
        // SAFETY: eight blocks of a scale and 32 bytes.
        unsafe {
            let mut u = [sign; 4];
            let mut v = 0;
            while v < 4 {
                u[v] = s.xor(s.load_runs::<32>(p.add(v * 68 + 2), 34), sign);
                v += 1;
            }
            (u, eight_scales(s, p, 34))
        }
    }
}
impl Format for Q8_0 {
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: the caller's promise.
        let (u, scales) = unsafe { Q8_0::bytes(s, p) };
        (u, scales, scales)
    }
}

pub(super) struct Q4_0;
impl Format for Q4_0 {
    const ORDER: [usize; 16] = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15];
    const OFFSET: i32 = 8;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let four = s.splat_i(0x0f0f_0f0f);
        // SAFETY: eight blocks of a scale and 16 bytes.
        unsafe {
            let (a, b) = (s.load_runs::<16>(p.add(2), 18), s.load_runs::<16>(p.add(74), 18));
            let high = [s.and(s.shr::<4>(a), four), s.and(s.shr::<4>(b), four)];
            let scales = eight_scales(s, p, 18);
            ([s.and(a, four), high[0], s.and(b, four), high[1]], scales, scales)
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(super) struct Q4_K;
/// The upper eight lanes, twice.
const UPPER: [i32; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15];
/// Of each lane of the scales and offsets, the lane of what it is multiplied with: d, dmin.
const FACTORS: [i32; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];
impl Format for Q4_K {
    const ORDER: [usize; 16] = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
    const OFFSET: i32 = 0;
    const FIRST: usize = 8;

    #[inline(always)]
    fn mins<S: Simd>(s: S, _: S::F, offsets: S::F) -> S::F {
        // SAFETY: 16 lanes.
        s.permute(offsets, s.bits(unsafe { s.load(UPPER.as_ptr().cast()) }))
    }

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
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

/// Scales and offsets of the groups of Q4_K and Q5_K, from their first 16 bytes.
#[inline(always)]
unsafe fn k_scales<S: Simd>(s: S, p: *const u8) -> S::F {
    // SAFETY: the caller has a block: d, dmin, 12 bytes of groups, and more.
    unsafe {
        let word = |at: usize| u32::from_le_bytes(p.add(at).cast::<[u8; 4]>().read());
        let (g0, g1, g2) = (word(4), word(8), word(12));
        let low = |g: u32| (g & 0x3f3f_3f3f) as u128;
        let high = |low: u32, g: u32| (low & 0x0f0f_0f0f | g >> 2 & 0x3030_3030) as u128;
        // One number, so that it goes to a vector without a detour through memory.
        let groups = (low(g0) | high(g2, g0) << 32 | low(g1) << 64 | high(g2 >> 4, g1) << 96).to_le();
        let factors = s.permute(s.load_f16(p.cast()), s.bits(s.load(FACTORS.as_ptr().cast())));
        s.mul(s.float(s.load_u8((&raw const groups).cast())), factors)
    }
}

/// The upper half of the lanes.
const UPPER_HALF: [i32; 16] = [0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1];

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(super) struct Q5_K;
impl Format for Q5_K {
    const ORDER: [usize; 16] = Q4_K::ORDER;
    const OFFSET: i32 = 0;
    const FIRST: usize = 8;

    #[inline(always)]
    fn mins<S: Simd>(s: S, scales: S::F, offsets: S::F) -> S::F {
        Q4_K::mins(s, scales, offsets)
    }

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let (four, fifth) = (s.splat_i(0x0f0f_0f0f), s.splat_i(0x1010_1010));
        // SAFETY: 16 bytes of scales, 32 of fifth bits, 128 of nibbles.
        unsafe {
            let scales = k_scales(s, p);
            // Bit g of a byte belongs to group g; the upper halves of the vectors are of the group after the next.
            let upper = s.bits(s.load(UPPER_HALF.as_ptr().cast()));
            let bits = s.load_runs::<32>(p.add(16), 0);
            let bits = s.or(s.and(s.shr::<2>(bits), upper), s.and(bits, s.xor(upper, s.splat_i(-1))));
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
pub(super) struct Q6_K;
impl Format for Q6_K {
    const ORDER: [usize; 16] = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15];
    const GROUP: usize = 16;
    const OFFSET: i32 = 32;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
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
            let d = s.f16_to_f32(u16::from_le_bytes(p.add(208).cast::<[u8; 2]>().read()));
            let scales = s.mul(s.float(s.load_i8(p.add(192).cast())), s.splat(d));
            (u, scales, scales)
        }
    }
}

/// What the tests of the kernels for quantized weights are given.
#[cfg(test)]
pub(super) mod drawn {
    use crate::{dtype::DType, op::Rng, quant};

    pub(in super::super) fn normal(count: usize, rng: &mut Rng) -> Vec<f32> {
        (0..count).map(|_| rng.normal() as f32).collect()
    }

    /// A weight's bytes, and the numbers they stand for.
    pub(in super::super) fn weight(dtype: DType, count: usize, rng: &mut Rng) -> (Vec<u8>, Vec<f32>) {
        let (mut bytes, mut decoded) = (vec![0; dtype.bytes(count).unwrap()], vec![0f32; count]);
        quant::encode(dtype, &normal(count, rng), &mut bytes).unwrap();
        quant::decode(dtype, &bytes, &mut decoded).unwrap();
        (bytes, decoded)
    }
}
