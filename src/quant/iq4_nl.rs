//! IQ4_NL: 32 numbers of 4 bits on an uneven grid that share a scale.
//!
//! ```text
//! byte 0   2                              18
//!      | d | q[0] q[1] ...          q[15] |     d: f16; low nibble of q[i]: element i, high nibble: element i + 16
//! ```
//!
//! `x = d * LEVELS[nibble]`. The encoder is a search of our own, by least squares. Mean squared error on normal numbers
//! of variance 1: 5.357e-3. A block with a NaN or an infinity gets the scale NaN, so that all of it decodes to NaN.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_weighted, fit, largest, nibbles, pack_nibbles, reciprocal};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::IQ4_NL, decode, encode };
const BYTES: usize = 2 + 32 / 2;
const _: () = assert!(DType::IQ4_NL.block().0 == 32 && DType::IQ4_NL.block().1 == BYTES);

/// Denser around zero, as weights are.
pub(super) const LEVELS: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[d0, d1, q @ ..]: &[u8; BYTES], out: &mut [f32; 32]| {
        let d = f16::from_le_bytes([*d0, *d1]).to_f32();
        *out = nibbles(q).map(|q| d * LEVELS[q as usize]);
    });
}

fn encode(values: &[f32], weights: &[f32], bytes: &mut [u8]) {
    each_block_weighted(values, weights, bytes, |x: &[f32; 32], w: &[f32; 32], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        let [d0, d1, q @ ..] = block;
        if largest(x).is_none() {
            [*d0, *d1] = NAN_SCALE;
            return;
        }
        let d = f16::from_f32(fit_group(x, w));
        [*d0, *d1] = d.to_le_bytes();
        let inverse = reciprocal(d.to_f32());
        *q = pack_nibbles(&x.map(|x| nearest(x * inverse)));
        fit::settle(x, w, block, 0, decode);
    });
}

/// The best scale for a group.
pub(super) fn fit_group(x: &[f32; 32], w: &[f32; 32]) -> f32 {
    let extreme = largest(x).unwrap_or(0.0);
    // The extreme may become either end.
    let tries = fit::around(extreme, -127.0, 0.85, 1.15, 9).chain(fit::around(extreme, 113.0, 0.85, 1.15, 9));
    fit::scale(x, w, tries, |inverse| x.map(|x| level(x * inverse)))
}

/// The level nearest to `x`; the first one for NaN.
pub(super) fn level(x: f32) -> f32 {
    (1..16).fold(LEVELS[0], |level, i| if x > middle(i) { LEVELS[i] } else { level })
}

/// The nibble of [`level`].
pub(super) fn nearest(x: f32) -> u8 {
    (1..16).map(|i| (x > middle(i)) as u8).sum()
}

/// Where level `i` begins to be nearer than the one below.
const fn middle(i: usize) -> f32 {
    0.5 * (LEVELS[i - 1] + LEVELS[i])
}
