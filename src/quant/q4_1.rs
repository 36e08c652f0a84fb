//! Q4_1: 32 numbers of 4 bits that share a scale and a minimum.
//!
//! ```text
//! byte 0   2   4                              20
//!      | d | m | q[0] q[1] ...          q[15] |     d, m: f16; low nibble of q[i]: element i, high: element i + 16
//! ```
//!
//! `x[i] = d * nibble + m`. Encoding gives the bytes of GGUF's reference encoder: `m` the smallest element, `d` a
//! fifteenth of the range before rounding to f16, nibbles truncated from `(x - m) / d + 0.5` by a reciprocal; with
//! importance weights both are searched by least squares. Mean squared error on normal numbers of variance 1: 6.128e-3.
//! Not settled there: a block with a NaN or an infinity gets the scale NaN, so that all of it decodes to NaN, and one
//! whose reciprocal overflows has all nibbles zero.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_weighted, fit, nibbles, pack_nibbles, range, reciprocal, round};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::Q4_1, decode, encode };
const BYTES: usize = 2 + 2 + 32 / 2;
const _: () = assert!(DType::Q4_1.block().0 == 32 && DType::Q4_1.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[d0, d1, m0, m1, q @ ..]: &[u8; BYTES], out: &mut [f32; 32]| {
        let (d, m) = (f16::from_le_bytes([*d0, *d1]).to_f32(), f16::from_le_bytes([*m0, *m1]).to_f32());
        *out = nibbles(q).map(|q| d * q as f32 + m);
    });
}

fn encode(values: &[f32], weights: &[f32], bytes: &mut [u8]) {
    each_block_weighted(values, weights, bytes, |x: &[f32; 32], w: &[f32; 32], block: &mut [u8; BYTES]| {
        let [d0, d1, m0, m1, q @ ..] = block;
        let (scales, codes) = affine(x, Some(w).filter(|_| !weights.is_empty()), 15);
        ([[*d0, *d1], [*m0, *m1]], *q) = (scales, pack_nibbles(&codes));
    });
}

/// The bytes of scale and minimum, and numbers as `0 ..= top`: what Q4_1 and Q5_1 share. With weights by least squares,
/// without as the reference encoder does.
pub(super) fn affine(x: &[f32; 32], w: Option<&[f32; 32]>, top: u8) -> ([[u8; 2]; 2], [u8; 32]) {
    let Some((low, high)) = range(x) else { return ([NAN_SCALE, [0; 2]], [0; 32]) };
    let Some(w) = w else {
        let d = (high - low) / top as f32;
        let inverse = reciprocal(d);
        let scales = [f16::from_f32(d), f16::from_f32(low)].map(f16::to_le_bytes);
        return (scales, x.map(|x| (((x - low) * inverse + 0.5) as u8).min(top)));
    };
    let (d, offset) = fit::scale_and_offset(x, w, top, true);
    let (d, m) = (f16::from_f32(d), f16::from_f32(-offset));
    let (inverse, low) = (reciprocal(d.to_f32()), m.to_f32());
    let codes = x.map(|x| round((x - low) * inverse).clamp(0, top as i32) as u8);
    ([d.to_le_bytes(), m.to_le_bytes()], codes)
}
