//! IQ2_S: 256 numbers in 16 groups of 16, 10 bits for each 8 magnitudes, 8 for their signs.
//!
//! ```text
//! byte 0   2            34          66        74          82
//!      | d | points[32] | signs[32] | high[8] | scales[8] |     d: f16
//! high: bits 2 j and 2 j + 1 of byte i are bits 8 and 9 of point 4 i + j
//! scales: low nibble group 2 i, high nibble group 2 i + 1
//! ```
//!
//! Points of the grid of 1024. `x = ((d (0.5 + scale)) / 4) coordinate sign`. The encoder is a search of our own, by
//! least squares. Mean squared error on normal numbers of variance 1: 5.714e-2. A block with a NaN or an infinity gets
//! the scale NaN, so that all of it decodes to NaN.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_weighted, fit, grid, largest};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::IQ2_S, decode, encode };
const SIGNS: usize = 2 + 32;
const HIGH: usize = SIGNS + 32;
const SCALES: usize = HIGH + 8;
const BYTES: usize = SCALES + 8;
const _: () = assert!(DType::IQ2_S.block().0 == 256 && DType::IQ2_S.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; BYTES], out: &mut [f32; 256]| {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scale = d * (0.5 + (block[SCALES + i / 4] >> (i / 2 % 2 * 4) & 15) as f32) * 0.25;
            let high = block[HIGH + i / 4] >> (i % 4 * 2) & 3;
            let point = grid::IQ2_S.point(block[2 + i] as usize | (high as usize) << 8);
            let signs = grid::factors(block[SIGNS + i]);
            *out = std::array::from_fn(|i| scale * point[i] * signs[i]);
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
        let e = grid::encode::<8, 16, 16, 32>(x, w, &grid::IQ2_S, false, &factors);
        block[..2].copy_from_slice(&e.d.to_le_bytes());
        block[SIGNS..HIGH].copy_from_slice(&e.signs);
        for (i, point) in e.points.iter().enumerate() {
            block[2 + i] = *point as u8;
            block[HIGH + i / 4] |= ((point >> 8) as u8) << (i % 4 * 2);
        }
        for (g, scale) in e.scales.iter().enumerate() {
            block[SCALES + g / 2] |= scale << (g % 2 * 4);
        }
        fit::settle(x, w, block, 0, decode);
    });
}
