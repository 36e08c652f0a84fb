//! IQ2_XXS: 256 numbers in 8 groups of 32, a byte for each 8 magnitudes, 7 bits for their signs.
//!
//! ```text
//! byte 0   2           10           18                  66
//!      | d | group 0    | group 1    | ...     group 7 |     d: f16
//! group: | points[4] | signs and scale |      u32: bits 7 j .. 7 j + 7 the signs of run j, 28 .. 32 the scale
//! ```
//!
//! Points of the grid of 256; the eighth sign makes the number of negatives even. `x = ((d (0.5 + scale)) / 4)
//! coordinate sign`. The encoder is a search of our own, by least squares. Mean squared error on normal numbers of
//! variance 1: 1.082e-1. A block with a NaN or an infinity gets the scale NaN, so that all of it decodes to NaN.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_weighted, fit, grid, largest};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::IQ2_XXS, decode, encode };
const BYTES: usize = 2 + 256 / 32 * (4 + 4);
const _: () = assert!(DType::IQ2_XXS.block().0 == 256 && DType::IQ2_XXS.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[d0, d1, groups @ ..]: &[u8; BYTES], out: &mut [f32; 256]| {
        let d = f16::from_le_bytes([*d0, *d1]).to_f32();
        let groups = groups.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<32>().0);
        for ([p0, p1, p2, p3, s0, s1, s2, s3], out) in groups {
            let bits = u32::from_le_bytes([*s0, *s1, *s2, *s3]);
            let scale = d * (0.5 + (bits >> 28) as f32) * 0.25;
            for (j, (out, &p)) in out.as_chunks_mut::<8>().0.iter_mut().zip([p0, p1, p2, p3]).enumerate() {
                let (point, signs) = (grid::IQ2_XXS.point(p as usize), grid::factors(grid::eighth(bits >> (7 * j))));
                *out = std::array::from_fn(|i| scale * point[i] * signs[i]);
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
        let factors: [f32; 16] = std::array::from_fn(|s| (0.5 + s as f32) * 0.25);
        let e = grid::encode::<8, 8, 32, 32>(x, w, &grid::IQ2_XXS, true, &factors);
        block[..2].copy_from_slice(&e.d.to_le_bytes());
        for (g, group) in block[2..].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let (points, rest) = group.split_at_mut(4);
            let bits = (0..4).fold((e.scales[g] as u32) << 28, |b, j| b | (e.signs[4 * g + j] as u32 & 127) << (7 * j));
            points.iter_mut().zip(&e.points[4 * g..]).for_each(|(to, &p)| *to = p as u8);
            rest.copy_from_slice(&bits.to_le_bytes());
        }
        fit::settle(x, w, block, 0, decode);
    });
}
