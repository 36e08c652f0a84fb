//! Q3_K: 256 numbers of 3 bits in 16 groups of 16, each with a scale of 6 bits.
//!
//! ```text
//! byte 0          32              96         108 110
//!      | high[32] | q[0] ... q[63] | scales[12] | d |     d: f16
//!
//! element 128 h + 32 p + i  (h < 2, p < 4, i < 32), group 8 h + 2 p + i / 16:
//!      bits 0..2: bits 2 p and 2 p + 1 of q[32 h + i]
//!      bit 2:     bit 4 h + p of high[i]
//! scale of group 4 n + j  (n, j < 4):
//!      bits 0..4: scales[4 (n % 2) + j], low nibble for n < 2, else high nibble
//!      bits 4..6: bits 2 n and 2 n + 1 of scales[8 + j]
//! ```
//!
//! `x = (d (scale - 32)) (bits - 4)`. The encoder is a search of our own, by least squares. Mean squared error on
//! normal numbers of variance 1: 2.060e-2. A block with a NaN or an infinity gets the scale NaN, so that all of it
//! decodes to NaN.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_weighted, fit, largest, nearest, pack_pairs, reciprocal};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::Q3_K, decode, encode };
const D: usize = 32 + 64 + 12;
const BYTES: usize = D + 2;
const _: () = assert!(DType::Q3_K.block().0 == 256 && DType::Q3_K.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; BYTES], out: &mut [f32; 256]| {
        let d = f16::from_le_bytes([block[D], block[D + 1]]).to_f32();
        let (high, rest) = block.split_at(32);
        let (q, scales) = rest.split_at(64);
        for (i, x) in out.iter_mut().enumerate() {
            let (h, p, g) = (i / 128, i / 32 % 4, i / 16);
            let scale = scales[g % 8] >> (g / 8 * 4) & 15 | (scales[8 + g % 4] >> (g / 4 * 2) & 3) << 4;
            let bits = q[32 * h + i % 32] >> (2 * p) & 3 | (high[i % 32] >> (4 * h + p) & 1) << 2;
            *x = (d * (scale as i32 - 32) as f32) * (bits as i32 - 4) as f32;
        }
    });
}

fn encode(values: &[f32], weights: &[f32], bytes: &mut [u8]) {
    each_block_weighted(values, weights, bytes, |x: &[f32; 256], w: &[f32; 256], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        if largest(x).is_none() {
            block[D..].copy_from_slice(&NAN_SCALE);
            return;
        }
        let (groups, weights) = (x.as_chunks::<16>().0, w.as_chunks::<16>().0);
        let bits = |x: f32, inverse: f32| nearest((x * inverse).clamp(-4.0, 3.0));
        let levels = |g: usize, inverse: f32| groups[g].map(|x| bits(x, inverse));
        let fits: [f32; 16] = std::array::from_fn(|g| {
            let extreme = largest(&groups[g]).unwrap_or(0.0);
            fit::scale(&groups[g], &weights[g], fit::around(extreme, -4.0, 0.7, 1.3, 25), |inverse| levels(g, inverse))
        });
        let factors: [f32; 64] = std::array::from_fn(|i| i as f32 - 32.0);
        let (d, codes) = fit::scales(groups, weights, &fits, &factors, levels);
        block[D..].copy_from_slice(&d.to_le_bytes());
        let inverse = codes.map(|code| reciprocal(d.to_f32() * factors[code as usize]));
        let q: [u8; 256] = std::array::from_fn(|i| (bits(x[i], inverse[i / 16]) + 4.0) as u8);
        block[32..96].copy_from_slice(&pack_pairs(&q));
        for (i, &q) in q.iter().enumerate() {
            block[i % 32] |= (q >> 2) << (i / 32);
        }
        for (g, &code) in codes.iter().enumerate() {
            block[96 + g % 8] |= (code & 15) << (g / 8 * 4);
            block[104 + g % 4] |= (code >> 4) << (g / 4 * 2);
        }
        fit::settle(x, w, block, D, decode);
    });
}
