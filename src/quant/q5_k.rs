//! Q5_K: 256 numbers of 5 bits in 8 groups of 32, each with a scale and an offset of 6 bits.
//!
//! ```text
//! byte 0   2      4            16         48                           176
//!      | d | dmin | groups[12] | high[32] | q[0]             q[127] |     d, dmin: f16; groups and q as in Q4_K
//! ```
//!
//! Bit 4 of element i of group g: bit g of high[i]. `x = d s bits - dmin m`, in this order of rounding: `(d s) bits -
//! (dmin m)`. The encoder is a search of our own, by least squares. Mean squared error on normal numbers of variance 1:
//! 1.193e-3. A block with a NaN or an infinity gets the scale NaN, so that all of it decodes to NaN.

use super::{
    Format, NAN_SCALE, each_block, each_block_weighted, fit, largest,
    q4_k::{groups, head, pack_nibbles},
};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::Q5_K, decode, encode };
const BYTES: usize = 2 + 2 + 12 + 256 / 8 + 256 / 2;
const _: () = assert!(DType::Q5_K.block().0 == 256 && DType::Q5_K.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; BYTES], out: &mut [f32; 256]| {
        let (head, rest) = block.split_at(16);
        let (high, q) = rest.split_at(32);
        for (j, (out, (s, m))) in out.as_chunks_mut::<32>().0.iter_mut().zip(groups(head)).enumerate() {
            for ((x, &q), &high) in out.iter_mut().zip(&q[j / 2 * 32..][..32]).zip(high) {
                *x = s * (q >> (j % 2 * 4) & 15 | (high >> j & 1) << 4) as f32 - m;
            }
        }
    });
}

fn encode(values: &[f32], weights: &[f32], bytes: &mut [u8]) {
    each_block_weighted(values, weights, bytes, |x: &[f32; 256], w: &[f32; 256], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        if largest(x).is_none() {
            block[..2].copy_from_slice(&NAN_SCALE);
            return;
        }
        let fit = fit::offset::<8, 32>(x, w, 31, 63);
        block[..16].copy_from_slice(&head(&fit));
        block[48..].copy_from_slice(&pack_nibbles(&fit.q));
        for (i, &bits) in fit.q.iter().enumerate() {
            block[16 + i % 32] |= (bits >> 4) << (i / 32);
        }
    });
}
