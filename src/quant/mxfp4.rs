//! MXFP4: 32 numbers of e2m1 that share a power of two (OCP microscaling, version 1.0).
//!
//! ```text
//! byte 0   1                              17
//!      | e | q[0] q[1] ...          q[15] |     low nibble of q[i]: element i, high nibble: element i + 16
//! ```
//!
//! `x = LEVELS[nibble] * 2^(e - 128)`: twice e2m1's numbers times half of e8m0's. e = 255 is an ordinary power.
//! Encoding gives the bytes of GGUF's reference encoder: `e = floor(log2 max |x|) + 125`, each number the nearest
//! level's, the first of equals. Mean squared error on normal numbers of variance 1: 1.325e-2. Not settled there: the
//! format has no NaN, so NaN becomes 0 and infinities the largest level of the largest scale; `e` stays within 0..=255.

use super::{Format, each_block, each_block_mut, nibbles, pack_nibbles};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::MXFP4, decode, encode };
const BYTES: usize = 1 + 32 / 2;
const _: () = assert!(DType::MXFP4.block().0 == 32 && DType::MXFP4.block().1 == BYTES);

/// e2m1's numbers, doubled.
pub(super) const LEVELS: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[e, q @ ..]: &[u8; BYTES], out: &mut [f32; 32]| {
        let d = power(*e);
        *out = nibbles(q).map(|q| d * LEVELS[q as usize]);
    });
}

fn encode(values: &[f32], _: &[f32], bytes: &mut [u8]) {
    each_block_mut(values, bytes, |x: &[f32; 32], [e, q @ ..]: &mut [u8; BYTES]| {
        let max = x.iter().fold(0f32, |most, v| most.max(v.abs())); // passes over NaN
        // The logarithm rounds to f32, and up to a whole number just below one.
        *e = if max > 0.0 { ((max as f64).log2() as f32).floor() + 125.0 } else { 0.0 } as u8;
        let d = power(*e);
        *q = pack_nibbles(&x.map(|x| nearest(d, x.clamp(f32::MIN, f32::MAX))));
    });
}

/// 2^(e - 128), half of what e8m0 says.
pub(crate) fn power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e as u32 - 1) << 23 })
}

/// The nibble of the level nearest to `x`, the first of equals; 0 for NaN.
pub(super) fn nearest(d: f32, x: f32) -> u8 {
    let mut best = (0, f32::INFINITY);
    for (nibble, level) in LEVELS.iter().enumerate() {
        let error = (d * level - x).abs();
        if error < best.1 {
            best = (nibble as u8, error);
        }
    }
    best.0
}
