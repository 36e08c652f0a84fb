//! How 256 elements of a quantized weight become four vectors of unsigned bytes, with their scales: what the kernels of 8-bit products read.
//! Written for vectors of 64 bytes ([`Simd::wide`]).
//!
//! `x = scale (u - OFFSET) - min`. Most formats have code of their own; those whose points are looked up in a grid and a few rare ones go
//! through the form of `cpu/unpack.rs`.
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
        format!(@ $dtype, $F, $body; I8 Q1_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ4_NL IQ4_XS MXFP4 TQ2_0)
    };
    (@ $dtype:expr, $F:ident, $body:expr; $($name:ident)*) => {
        match $dtype {
            $($crate::dtype::DType::$name => {
                type $F = $crate::cpu::matmul::format::$name;
                $body
            })*
            _ => {
                type $F = $crate::cpu::matmul::format::Any;
                $body
            }
        }
    };
}
pub(super) use format;

mod long;
mod short;

pub(super) use self::{
    long::{IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, TQ2_0},
    short::{I8, IQ4_NL, MXFP4, Q1_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1},
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
    /// How many products of a pair of bytes with one of x fit 16 bits together: 254 times the largest byte times STEPS is below 2^15. 0 where bytes have more than
    /// 6 bits.
    const STEPS: usize = 4;
    /// Of each vector's lanes, the lane of the scales that belongs to them.
    const GROUPS: [[i32; 16]; 4] = groups(Self::ORDER, Self::GROUP);

    /// Four vectors of unsigned bytes; a scale for each group; and, from lane FIRST on, what is multiplied with `-OFFSET` (or -1, where it is 0) times the
    /// sum of x over a group and added to the products of the bytes.
    ///
    /// # Safety
    /// `p` is readable for 256 elements.
    unsafe fn unpack<S: Simd>(s: S, dtype: DType, p: *const u8) -> ([S::I; 4], S::F, S::F);

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
    fn mins<S: Simd>(s: S, scales: S::F, offsets: S::F) -> S::F {
        if Self::OFFSET == 0 { offsets } else { s.mul(s.sub(offsets, scales), s.splat(Self::OFFSET as f32)) }
    }
}

/// The groups' scales and mins of 16 rows: whole numbers, and what they are multiplied with.
pub(super) struct Integers<S: Simd> {
    pub(super) scales: [S::I; 16],
    pub(super) scale: S::F,
    pub(super) mins: [S::I; 16],
    pub(super) min: S::F,
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

/// Every format whose levels are from -64 to 63, through the form that all kernels read.
pub(super) struct Any;
impl Format for Any {
    const GROUP: usize = 16;
    const OFFSET: i32 = 64;
    const MINS: bool = true;
    const STEPS: usize = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, dtype: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let mut levels = Levels::ZERO;
        // SAFETY: the caller has the blocks, which give 256 levels; vectors are of 64 bytes.
        unsafe {
            unpack(s, dtype, slice::from_raw_parts(p, dtype.bytes(256).unwrap_or(0)), &mut levels);
            let mut u = [s.splat_i(0); 4];
            let mut v = 0;
            while v < 4 {
                // Plus 128 less 64, of which no byte borrows.
                let q = s.shift_bytes(s.bits(s.load(levels.q.as_ptr().add(64 * v).cast())));
                u[v] = s.sub_i(q, s.splat_i(0x4040_4040));
                v += 1;
            }
            let scales = s.load(levels.scale.as_ptr());
            // The sums are -64 times those of x.
            (u, scales, s.fma(s.load(levels.min.as_ptr()), s.splat(1.0 / 64.0), scales))
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
        let mut values = normal(count, rng);
        if dtype == DType::I8 {
            values.iter_mut().for_each(|v| *v *= 40.0);
        }
        quant::encode(dtype, &values, &mut bytes).unwrap();
        quant::decode(dtype, &bytes, &mut decoded).unwrap();
        (bytes, decoded)
    }
}
