//! TQ1_0: 256 numbers of -1, 0 or 1, five to a byte, that share a scale.
//!
//! ```text
//! byte 0               48     52  54
//!      | q[0] ... q[47] | h[4] | d |     d: f16
//!
//! q[i],  i < 32: elements      i, 32 + i, ..., 128 + i
//! q[i], i >= 32: elements 160 + j, 176 + j, ..., 224 + j  with j = i - 32
//! h[i]:          elements 240 + i, 244 + i, 248 + i, 252 + i
//! ```
//!
//! A byte is the fraction 0.t0 t1 t2 t3 t4 in base 3, in 256ths and rounded up, so that digit n is the integer part of
//! 3 times the fraction after n multiplications by 3 (modulo 1). `x = (digit - 1) * d`. Encoding gives the bytes of
//! GGUF's reference encoder: `d = max |x|` before rounding to f16, digits of `x / d` by a reciprocal, halves away from
//! zero. Mean squared error on normal numbers of variance 1: 6.461e-1 (it is for weights trained to be ternary). Not
//! settled there: a block with a NaN or an infinity gets the scale NaN, so that all of it decodes to NaN, and one whose
//! reciprocal overflows is all zeros.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_mut, largest, reciprocal, round};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::TQ1_0, decode, encode };
const BYTES: usize = 48 + 4 + 2;
const _: () = assert!(DType::TQ1_0.block().0 == 256 && DType::TQ1_0.block().1 == BYTES);

/// `(first byte, bytes, digits in each, first element)` of the three parts.
const PARTS: [(usize, usize, usize, usize); 3] = [(0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240)];

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[q @ .., d0, d1]: &[u8; BYTES], out: &mut [f32; 256]| {
        let d = f16::from_le_bytes([*d0, *d1]).to_f32();
        for (at, width, digits, element) in PARTS {
            for (i, &byte) in q[at..][..width].iter().enumerate() {
                let mut fraction = byte;
                for n in 0..digits {
                    out[element + n * width + i] = (((fraction as u32 * 3) >> 8) as i32 - 1) as f32 * d;
                    fraction = fraction.wrapping_mul(3);
                }
            }
        }
    });
}

fn encode(values: &[f32], _: &[f32], bytes: &mut [u8]) {
    each_block_mut(values, bytes, |x: &[f32; 256], block: &mut [u8; BYTES]| {
        let [q @ .., d0, d1] = block;
        let (d, digits) = digits(x);
        [*d0, *d1] = d;
        for (at, width, count, element) in PARTS {
            for (i, byte) in q[at..][..width].iter_mut().enumerate() {
                // All five places, the last of them empty in the last part.
                let digit = |n| if n < count { digits[element + n * width + i] as u32 } else { 0 };
                *byte = ((0..5).fold(0, |sum, n| sum * 3 + digit(n)) * 256).div_ceil(243) as u8;
            }
        }
    });
}

/// The scale's bytes, and each number's digit 0, 1 or 2.
pub(super) fn digits(x: &[f32; 256]) -> ([u8; 2], [u8; 256]) {
    let Some(max) = largest(x) else { return (NAN_SCALE, [0; 256]) };
    let inverse = reciprocal(max.abs());
    (f16::from_f32(max.abs()).to_le_bytes(), x.map(|x| (round(x * inverse) + 1) as u8))
}
