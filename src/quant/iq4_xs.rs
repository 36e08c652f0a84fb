//! IQ4_XS: 256 numbers of 4 bits on IQ4_NL's grid in 8 groups of 32, each with a scale of 6 bits.
//!
//! ```text
//! byte 0   2      4        8                                        136
//!      | d | high | low[4] | q[0]                           q[127] |     d: f16, high: u16
//! ```
//!
//! Group g: low nibble of q[16 g + i] is element i, high nibble element i + 16. Its scale: bits 0..4 in low[g / 2], low
//! nibble for even g, else high nibble; bits 4..6 are bits 2 g and 2 g + 1 of `high`. `x = (d (scale - 32))
//! LEVELS[nibble]`. The encoder is a search of our own, by least squares. Mean squared error on normal numbers of
//! variance 1: 5.455e-3. A block with a NaN or an infinity gets the scale NaN, so that all of it decodes to NaN.

use half::f16;

use super::{
    Format, NAN_SCALE, each_block, each_block_weighted, fit,
    iq4_nl::{LEVELS, fit_group, level, nearest},
    largest, nibbles, pack_nibbles, reciprocal,
};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::IQ4_XS, decode, encode };
const BYTES: usize = 2 + 2 + 8 / 2 + 256 / 2;
const _: () = assert!(DType::IQ4_XS.block().0 == 256 && DType::IQ4_XS.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[d0, d1, h0, h1, rest @ ..]: &[u8; BYTES], out: &mut [f32; 256]| {
        let (d, high) = (f16::from_le_bytes([*d0, *d1]).to_f32(), u16::from_le_bytes([*h0, *h1]));
        let (low, q) = rest.split_at(4);
        for (g, (out, q)) in out.as_chunks_mut::<32>().0.iter_mut().zip(q.as_chunks::<16>().0).enumerate() {
            let code = (low[g / 2] >> (g % 2 * 4) & 15) as i32 | ((high >> (2 * g) & 3) as i32) << 4;
            let scale = d * (code - 32) as f32;
            *out = nibbles(q).map(|q| scale * LEVELS[q as usize]);
        }
    });
}

fn encode(values: &[f32], weights: &[f32], bytes: &mut [u8]) {
    each_block_weighted(values, weights, bytes, |x: &[f32; 256], w: &[f32; 256], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        let [d0, d1, h0, h1, rest @ ..] = block;
        if largest(x).is_none() {
            [*d0, *d1] = NAN_SCALE;
            return;
        }
        let (groups, weights) = (x.as_chunks::<32>().0, w.as_chunks::<32>().0);
        let fits: [f32; 8] = std::array::from_fn(|g| fit_group(&groups[g], &weights[g]));
        let factors: [f32; 64] = std::array::from_fn(|i| i as f32 - 32.0);
        let levels = |g: usize, inverse: f32| groups[g].map(|x| level(x * inverse));
        let (d, codes) = fit::scales(groups, weights, &fits, &factors, levels);
        [*d0, *d1] = d.to_le_bytes();
        [*h0, *h1] = (0..8).fold(0u16, |high, g| high | (codes[g] as u16 >> 4) << (2 * g)).to_le_bytes();
        let (low, q) = rest.split_at_mut(4);
        for (g, (x, q)) in groups.iter().zip(q.as_chunks_mut().0).enumerate() {
            low[g / 2] |= (codes[g] & 15) << (g % 2 * 4);
            let inverse = reciprocal(d.to_f32() * factors[codes[g] as usize]);
            *q = pack_nibbles(&x.map(|x| nearest(x * inverse)));
        }
        fit::settle(x, w, block, 0, decode);
    });
}
