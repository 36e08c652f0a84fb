//! Q4_0: 32 numbers of 4 bits that share a scale.
//!
//! ```text
//! byte 0   2                              18
//!      | d | q[0] q[1] ...          q[15] |     d: f16; low nibble of q[i]: element i, high nibble: element i + 16
//! ```
//!
//! `x[i] = (nibble - 8) * d`. Encoding gives the bytes of GGUF's reference encoder: `d = m / -8` with `m` the element
//! of the largest magnitude (the first of equals) before rounding to f16, nibbles truncated from `x / d + 8.5` by a
//! reciprocal; with importance weights the scale is searched by least squares. Mean squared error on normal numbers of
//! variance 1: 7.382e-3. Not settled there: a block with a NaN or an infinity gets the scale NaN, so that all of it
//! decodes to NaN, and one whose reciprocal overflows is all zeros.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_weighted, fit, largest, nearest, pack_nibbles, reciprocal};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::Q4_0, decode, encode };
const BYTES: usize = 2 + 32 / 2;
const _: () = assert!(DType::Q4_0.block().0 == 32 && DType::Q4_0.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[d0, d1, q @ ..]: &[u8; BYTES], out: &mut [f32; 32]| {
        let d = f16::from_le_bytes([*d0, *d1]).to_f32();
        let (low, high) = out.split_at_mut(16);
        for ((low, high), &q) in low.iter_mut().zip(high).zip(q) {
            *low = ((q & 15) as i32 - 8) as f32 * d;
            *high = ((q >> 4) as i32 - 8) as f32 * d;
        }
    });
}

fn encode(values: &[f32], weights: &[f32], bytes: &mut [u8]) {
    each_block_weighted(values, weights, bytes, |x: &[f32; 32], w: &[f32; 32], block: &mut [u8; BYTES]| {
        let [d0, d1, q @ ..] = block;
        let (d, nibbles) = symmetric(x, Some(w).filter(|_| !weights.is_empty()), 8.0);
        ([*d0, *d1], *q) = (d, pack_nibbles(&nibbles));
    });
}

/// The scale's bytes, and numbers as `0 .. 2 half` around `half`: what Q4_0 and Q5_0 share. With weights by least
/// squares, without as the reference encoder does.
pub(super) fn symmetric(x: &[f32; 32], w: Option<&[f32; 32]>, half: f32) -> ([u8; 2], [u8; 32]) {
    let Some(max) = largest(x) else { return (NAN_SCALE, [0; 32]) };
    let Some(w) = w else {
        let d = max / -half;
        let (inverse, top) = (reciprocal(d), 2 * half as u8 - 1);
        return (f16::from_f32(d).to_le_bytes(), x.map(|x| ((x * inverse + (half + 0.5)) as u8).min(top)));
    };
    let levels = |inverse: f32| x.map(|x| nearest((x * inverse).clamp(-half, half - 1.0)));
    let tries = fit::around(max, -half, 0.7, 1.2, 33).chain(fit::around(max, half - 1.0, 0.8, 1.2, 27));
    let d = f16::from_f32(fit::scale(x, w, tries, levels));
    let q = levels(reciprocal(d.to_f32()));
    let d = fit::settled(d, x, w, &q.map(|q| q * d.to_f32()));
    (d.to_le_bytes(), q.map(|q| (q + half) as u8))
}
