//! Q4_K: 256 numbers of 4 bits in 8 groups of 32, each with a scale and an offset of 6 bits.
//!
//! ```text
//! byte 0   2      4            16                                        144
//!      | d | dmin | groups[12] | q[0]                           q[127] |     d, dmin: f16
//!
//! q[32 c + i]: low nibble is element i of group 2 c, high nibble element i of group 2 c + 1
//! groups: scales s[0..8] and offsets m[0..8], bits from high to low, j = 0..4
//!      byte     j: s[j+4]5 s[j+4]4 s[j]5 ... s[j]0
//!      byte 4 + j: m[j+4]5 m[j+4]4 m[j]5 ... m[j]0
//!      byte 8 + j: m[j+4]3 ... m[j+4]0 s[j+4]3 ... s[j+4]0
//! ```
//!
//! `x = d s nibble - dmin m`, in this order of rounding: `(d s) nibble - (dmin m)`. The encoder is a search of our own,
//! by least squares. Mean squared error on normal numbers of variance 1: 4.859e-3. A block with a NaN or an infinity
//! gets the scale NaN, so that all of it decodes to NaN.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_weighted, fit, largest};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::Q4_K, decode, encode };
const BYTES: usize = 2 + 2 + 12 + 256 / 2;
const _: () = assert!(DType::Q4_K.block().0 == 256 && DType::Q4_K.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; BYTES], out: &mut [f32; 256]| {
        let (head, q) = block.split_at(16);
        let groups = groups(head);
        for (c, (out, q)) in out.as_chunks_mut::<64>().0.iter_mut().zip(q.as_chunks::<32>().0).enumerate() {
            let (low, high) = out.split_at_mut(32);
            for (j, shift, out) in [(2 * c, 0, low), (2 * c + 1, 4, high)] {
                let (s, m) = groups[j];
                for (x, &q) in out.iter_mut().zip(q) {
                    *x = s * (q >> shift & 15) as f32 - m;
                }
            }
        }
    });
}

/// Scale and offset of the groups, from the first 16 bytes.
pub(super) fn groups(head: &[u8]) -> [(f32, f32); 8] {
    let half = |at: usize| f16::from_le_bytes([head[at], head[at + 1]]).to_f32();
    let (d, dmin, g) = (half(0), half(2), &head[4..]);
    std::array::from_fn(|j| {
        let (s, m) = match j {
            0..4 => (g[j] & 63, g[j + 4] & 63),
            _ => (g[j + 4] & 15 | g[j - 4] >> 6 << 4, g[j + 4] >> 4 | g[j] >> 6 << 4),
        };
        (d * s as f32, dmin * m as f32)
    })
}

/// The first 16 bytes of a block.
pub(super) fn head(fit: &fit::Offset<8>) -> [u8; 16] {
    let ([d0, d1], [m0, m1], g) = (fit.d.to_le_bytes(), fit.dmin.to_le_bytes(), &fit.groups);
    std::array::from_fn(|i| match i {
        0..4 => [d0, d1, m0, m1][i],
        4..8 => g[i - 4].0 | g[i].0 >> 4 << 6,
        8..12 => g[i - 8].1 | g[i - 4].1 >> 4 << 6,
        _ => g[i - 8].0 & 15 | g[i - 8].1 << 4,
    })
}

/// The low nibbles of all elements in their places.
pub(super) fn pack_nibbles(q: &[u8; 256]) -> [u8; 128] {
    std::array::from_fn(|i| q[i / 32 * 64 + i % 32] & 15 | q[i / 32 * 64 + 32 + i % 32] << 4)
}

fn encode(values: &[f32], weights: &[f32], bytes: &mut [u8]) {
    each_block_weighted(values, weights, bytes, |x: &[f32; 256], w: &[f32; 256], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        if largest(x).is_none() {
            block[..2].copy_from_slice(&NAN_SCALE);
            return;
        }
        let fit = fit::offset::<8, 32>(x, w, 15, 63);
        block[..16].copy_from_slice(&head(&fit));
        block[16..].copy_from_slice(&pack_nibbles(&fit.q));
    });
}
