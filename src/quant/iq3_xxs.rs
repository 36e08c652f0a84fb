//! IQ3_XXS: 256 numbers in 8 groups of 32, a byte for each 4 magnitudes, 7 bits for the signs of 8.
//!
//! ```text
//! byte 0   2            66                      98
//!      | d | points[64] | groups[0] ... groups[7] |     d: f16
//! group: u32, bits 7 j .. 7 j + 7 the signs of run j of 8, 28 .. 32 the scale
//! ```
//!
//! Points of the grid of 256; the eighth sign makes the number of negatives even. `x = ((d (0.5 + scale)) / 2)
//! coordinate sign`. The encoder is a search of our own, by least squares. Mean squared error on normal numbers of
//! variance 1: 3.123e-2. A block with a NaN or an infinity gets the scale NaN, so that all of it decodes to NaN.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_weighted, fit, grid, largest};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::IQ3_XXS, decode, encode };
const GROUPS: usize = 2 + 256 / 4;
const BYTES: usize = GROUPS + 8 * 4;
const _: () = assert!(DType::IQ3_XXS.block().0 == 256 && DType::IQ3_XXS.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; BYTES], out: &mut [f32; 256]| {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let (points, groups) = block[2..].split_at(GROUPS - 2);
        let runs = out.as_chunks_mut::<8>().0.iter_mut().zip(points.as_chunks::<2>().0);
        for (i, (out, pair)) in runs.enumerate() {
            let bits = u32::from_le_bytes(groups.as_chunks().0[i / 4]);
            let scale = d * (0.5 + (bits >> 28) as f32) * 0.5;
            let signs = grid::factors(grid::eighth(bits >> (i % 4 * 7)));
            let points = pair.map(|p| grid::IQ3_XXS.point(p as usize));
            *out = std::array::from_fn(|i| scale * points[i / 4][i % 4] * signs[i]);
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
        let factors: [f32; 16] = std::array::from_fn(|s| (0.5 + s as f32) * 0.5);
        let e = grid::encode::<4, 8, 32, 64>(x, w, &grid::IQ3_XXS, true, &factors);
        block[..2].copy_from_slice(&e.d.to_le_bytes());
        block[2..GROUPS].iter_mut().zip(&e.points).for_each(|(to, &p)| *to = p as u8);
        for (g, group) in block[GROUPS..].as_chunks_mut().0.iter_mut().enumerate() {
            let bits = (0..4).fold((e.scales[g] as u32) << 28, |b, j| b | (e.signs[4 * g + j] as u32 & 127) << (7 * j));
            *group = bits.to_le_bytes();
        }
        fit::settle(x, w, block, 0, decode);
    });
}
