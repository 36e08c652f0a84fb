//! Q6_K: 256 numbers of 6 bits in 16 groups of 16, each with a scale of 8 bits.
//!
//! ```text
//! byte 0         128       192           208 210
//!      | low[128] | high[64] | scales[16] | d |     d: f16, scales: i8
//!
//! element 128 h + 32 p + i  (h < 2, p < 4, i < 32), group 8 h + 2 p + i / 16:
//!      bits 0..4: low[64 h + 32 (p % 2) + i], low nibble for p < 2, else high nibble
//!      bits 4..6: high[32 h + i] >> 2 p
//! ```
//!
//! `x = (d scale) (bits - 32)`. The encoder is a search of our own, by least squares. Mean squared error on normal
//! numbers of variance 1: 2.959e-4. A block with a NaN or an infinity gets the scale NaN, so that all of it decodes to
//! NaN.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_weighted, fit, largest, nearest, reciprocal};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::Q6_K, decode, encode };
const LOW: usize = 256 / 2;
const HIGH: usize = 256 / 4;
const BYTES: usize = LOW + HIGH + 16 + 2;
const _: () = assert!(DType::Q6_K.block().0 == 256 && DType::Q6_K.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[quants @ .., d0, d1]: &[u8; BYTES], out: &mut [f32; 256]| {
        let d = f16::from_le_bytes([*d0, *d1]).to_f32();
        let (low, rest) = quants.split_at(LOW);
        let (high, scales) = rest.split_at(HIGH);
        for (g, (out, &scale)) in out.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
            let scale = d * scale as i8 as f32;
            let at = place(g);
            for ((x, &low), &high) in out.iter_mut().zip(&low[at.low..][..16]).zip(&high[at.high..][..16]) {
                let bits = low >> at.low_shift & 15 | (high >> at.high_shift & 3) << 4;
                *x = scale * (bits as i32 - 32) as f32;
            }
        }
    });
}

/// Where a group's bits begin, and by how much they are shifted there.
struct Place {
    low: usize,
    low_shift: usize,
    high: usize,
    high_shift: usize,
}

fn place(group: usize) -> Place {
    let (h, p, i) = (group / 8, group / 2 % 4, group % 2 * 16);
    Place { low: 64 * h + 32 * (p % 2) + i, low_shift: p / 2 * 4, high: 32 * h + i, high_shift: 2 * p }
}

fn encode(values: &[f32], weights: &[f32], bytes: &mut [u8]) {
    each_block_weighted(values, weights, bytes, |x: &[f32; 256], w: &[f32; 256], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        let [quants @ .., d0, d1] = block;
        if largest(x).is_none() {
            [*d0, *d1] = NAN_SCALE;
            return;
        }
        let (groups, weights) = (x.as_chunks::<16>().0, w.as_chunks::<16>().0);
        let bits = |x: f32, inverse: f32| nearest((x * inverse).clamp(-32.0, 31.0));
        let levels = |g: usize, inverse: f32| groups[g].map(|x| bits(x, inverse));
        let fits: [f32; 16] = std::array::from_fn(|g| {
            let extreme = largest(&groups[g]).unwrap_or(0.0);
            fit::scale(&groups[g], &weights[g], fit::around(extreme, -32.0, 0.96, 1.04, 19), |inverse| levels(g, inverse))
        });
        let factors: [f32; 256] = std::array::from_fn(|i| i as f32 - 128.0);
        let (d, codes) = fit::scales(groups, weights, &fits, &factors, levels);
        [*d0, *d1] = d.to_le_bytes();
        let (low, rest) = quants.split_at_mut(LOW);
        let (high, scales) = rest.split_at_mut(HIGH);
        for (g, ((x, &code), scale)) in groups.iter().zip(&codes).zip(scales).enumerate() {
            *scale = code ^ 128; // from 0..=255 to -128..=127
            let (inverse, at) = (reciprocal(d.to_f32() * factors[code as usize]), place(g));
            for (i, &x) in x.iter().enumerate() {
                let bits = (bits(x, inverse) + 32.0) as u8;
                low[at.low + i] |= (bits & 15) << at.low_shift;
                high[at.high + i] |= bits >> 4 << at.high_shift;
            }
        }
        fit::settle(x, w, block, LOW + HIGH + 16, decode);
    });
}
