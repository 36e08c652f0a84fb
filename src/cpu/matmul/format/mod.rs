//! How 256 elements of a quantized weight become four vectors of unsigned bytes, with their scales: what the kernels of 8-bit products read.
//! Written for vectors of 64 bytes ([`Simd::wide`]).
//!
//! `x = scale (u - OFFSET) - min`. Each format has code of its own, by the kind of its blocks: [`short`], [`long`], [`grid`]. Elements come in the order in which the format's bits yield them: ORDER.

use crate::cpu::simd::Simd;

/// `format!(dtype, F => expression)`: the expression for the dtype's [`Format`].
macro_rules! format {
    ($dtype:expr, $F:ident => $body:expr) => {
        format!(@ $dtype, $F, $body; I8 Q1_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K
            IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS MXFP4 NVFP4 TQ1_0 TQ2_0)
    };
    (@ $dtype:expr, $F:ident, $body:expr; $($name:ident)*) => {
        match $dtype {
            $($crate::dtype::DType::$name => {
                type $F = $crate::cpu::matmul::format::$name;
                $body
            })*
            // Nothing else is ever planned.
            _ => {
                type $F = $crate::cpu::matmul::format::I8;
                $body
            }
        }
    };
}
pub(super) use format;

mod grid;
mod long;
mod short;

pub(super) use self::{
    grid::{IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS},
    long::{IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, TQ1_0, TQ2_0},
    short::{I8, IQ4_NL, MXFP4, NVFP4, Q1_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1},
};

/// How 256 elements of a weight become bytes.
pub(super) trait Format {
    /// Runs of 16 elements, in the order of the vectors' lanes.
    const ORDER: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    /// Elements that share a scale: 16 or 32.
    const GROUP: usize = 32;
    /// What is subtracted from a byte.
    const OFFSET: i32;
    /// True where groups have a `min`.
    const MINS: bool = Self::OFFSET == 0;
    /// Lane of the offsets that belongs to the first group.
    const FIRST: usize = 0;
    /// How many products of a pair of bytes with one of x fit 16 bits together: 254 times the largest byte times STEPS is below 2^15. 0 where
    /// bytes have 8 bits.
    const STEPS: usize = 4;
    /// Of each lane of the four vectors, turned by [`Simd::turn_fours`], the lane of the scales that belongs to it.
    const TURNED: [i32; 16] = turned(Self::ORDER, Self::GROUP);

    /// Four vectors of unsigned bytes; a scale for each group; and, from lane FIRST on, what is multiplied with `-OFFSET` (or -1, where it is 0) times the
    /// sum of x over a group and added to the products of the bytes.
    ///
    /// # Safety
    /// `p` is readable for 256 elements.
    unsafe fn unpack<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F, S::F);

    /// The groups' scales of 16 rows as the format has them, where they are whole numbers.
    ///
    /// # Safety
    /// `rows` are readable for 256 elements.
    #[inline(always)]
    unsafe fn integers<S: Simd>(_: S, _rows: &[*const u8; 16]) -> Option<Integers<S>> {
        None
    }

    /// The groups' `min`, from what `unpack` gives, where they have one.
    #[inline(always)]
    fn mins<S: Simd>(_: S, offsets: S::F) -> S::F {
        offsets
    }
}

/// The groups' scales and mins of 16 rows: whole numbers, and what they are multiplied with.
pub(super) struct Integers<S: Simd> {
    pub(super) scales: [S::I; 16],
    pub(super) scale: S::F,
    pub(super) mins: [S::I; 16],
    pub(super) min: S::F,
}

/// Lanes of the scales, see [`Format::TURNED`]: run `4 v + i` of the vectors is lane `4 i + v` of all four, once they are turned.
const fn turned(order: [usize; 16], group: usize) -> [i32; 16] {
    let (mut all, mut run) = ([0; 16], 0);
    while run < 16 {
        all[run % 4 * 4 + run / 4] = (order[run] * 16 / group) as i32;
        run += 1;
    }
    all
}

/// A scale in all lanes.
#[inline(always)]
unsafe fn half<S: Simd>(s: S, p: *const u8) -> S::F {
    // SAFETY: the caller has two bytes.
    s.splat(s.f16_to_f32(u16::from_le_bytes(unsafe { p.cast::<[u8; 2]>().read() })))
}

/// The nibbles of a word of 64 bits, low ones first, a byte each.
#[inline(always)]
fn nibbles(bits: u64) -> u128 {
    let spread = |bits: u64| {
        let mut bits = bits & 0xffff_ffff;
        bits = (bits | bits << 16) & 0x0000_ffff_0000_ffff;
        bits = (bits | bits << 8) & 0x00ff_00ff_00ff_00ff;
        (bits | bits << 4) & 0x0f0f_0f0f_0f0f_0f0f
    };
    spread(bits) as u128 | (spread(bits >> 32) as u128) << 64
}

/// A byte for each lane; one number, so that it goes to a vector without a detour through memory.
#[inline(always)]
fn lanes<S: Simd>(s: S, bytes: u128) -> S::I {
    let bytes = bytes.to_le();
    // SAFETY: 16 bytes.
    unsafe { s.load_u8((&raw const bytes).cast()) }
}

#[inline(always)]
unsafe fn word(p: *const u8) -> u32 {
    // SAFETY: the caller has four bytes.
    u32::from_le_bytes(unsafe { p.cast::<[u8; 4]>().read() })
}

#[inline(always)]
unsafe fn double(p: *const u8) -> u64 {
    // SAFETY: the caller has eight bytes.
    u64::from_le_bytes(unsafe { p.cast::<[u8; 8]>().read() })
}

/// A vector of these lanes.
#[inline(always)]
fn constant<S: Simd>(s: S, lanes: &[i32; 16]) -> S::I {
    // SAFETY: 16 lanes.
    s.bits(unsafe { s.load(lanes.as_ptr().cast()) })
}

/// Where the lanes are all ones `b`, where they are 0 `a`.
#[inline(always)]
fn chosen<S: Simd>(s: S, a: S::I, b: S::I, which: &[i32; 16]) -> S::I {
    s.xor(a, s.and(s.xor(a, b), constant(s, which)))
}

/// What the tests of the kernels for quantized weights are given.
#[cfg(test)]
pub(super) mod drawn {
    use crate::{dtype::DType, op::Rng, quant};

    pub(in super::super) fn normal(count: usize, rng: &mut Rng) -> Vec<f32> {
        (0..count).map(|_| rng.normal() as f32).collect()
    }

    /// A weight's bytes, and the numbers they stand for: normal ones, or of heavy tails (Student's t with four degrees of freedom).
    pub(in super::super) fn weight(dtype: DType, count: usize, heavy: bool, rng: &mut Rng) -> (Vec<u8>, Vec<f32>) {
        let (mut bytes, mut decoded) = (vec![0; dtype.bytes(count).unwrap()], vec![0f32; count]);
        let mut values = normal(count, rng);
        for value in values.iter_mut().filter(|_| heavy) {
            let squares: f64 = (0..4).map(|_| rng.normal().powi(2)).sum();
            *value /= (squares / 4.0).sqrt() as f32;
        }
        if dtype == DType::I8 {
            values.iter_mut().for_each(|v| *v *= 40.0);
        }
        quant::encode(dtype, &values, &mut bytes).unwrap();
        quant::decode(dtype, &bytes, &mut decoded).unwrap();
        (bytes, decoded)
    }
}

#[cfg(test)]
mod tests {
    use super::Format;
    use crate::{
        cpu::{
            simd::Scalar,
            unpack::{Levels, unpack},
        },
        dtype::DType,
        op::Rng,
    };

    /// Of bytes that anybody may have written.
    #[test]
    fn levels_are_as_small_as_they_are_said_to_be() {
        let mut rng = Rng(5);
        for &dtype in DType::ALL.iter().filter(|d| d.is_quantized()) {
            let (offset, steps) = format!(dtype, F => (F::OFFSET, F::STEPS as i32));
            for _ in 0..200 {
                let bytes: Vec<u8> = (0..dtype.bytes(256).unwrap()).map(|_| rng.below(256) as u8).collect();
                let mut levels = Levels::ZERO;
                unpack(Scalar, dtype, &bytes, &mut levels);
                for u in levels.q.map(|q| q as i32 + offset) {
                    assert!(u >= 0 || offset == 0, "{dtype}: {u}");
                    assert!(254 * u * steps < 1 << 15, "{dtype}: {u}");
                }
            }
        }
    }
}
