//! IQ1_M: 256 numbers in 16 groups of 16, 11 bits and a shift for each 8 numbers, with a scale for the group.
//!
//! ```text
//! byte 0            32         48          56
//!      | points[32] | high[16] | scales[4] |
//! high: low nibble run 2 i, high nibble run 2 i + 1: bits 0 .. 3 are bits 8 .. 11 of the point, bit 3 the shift's sign
//! scales: u16, bits 3 j .. 3 j + 3 the scale of group 4 i + j, 12 .. 16: bits 4 i .. 4 i + 4 of d, an f16
//! ```
//!
//! Points and values as in IQ1_S: `x = (d (2 scale + 1)) (coordinate + shift)`. The encoder is a search of our own, by
//! least squares. Mean squared error on normal numbers of variance 1: 1.713e-1. A block with a NaN or an infinity gets
//! the scale NaN, so that all of it decodes to NaN.

use half::f16;

use super::{
    Format, NAN_SCALE, each_block, each_block_weighted, fit, grid,
    iq1_s::{FACTORS, SHIFT, shifted, tries},
    largest, reciprocal,
};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::IQ1_M, decode, encode };
const HIGH: usize = 256 / 8;
const SCALES: usize = HIGH + 16;
const BYTES: usize = SCALES + 4 * 2;
const _: () = assert!(DType::IQ1_M.block().0 == 256 && DType::IQ1_M.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; BYTES], out: &mut [f32; 256]| {
        let words = block[SCALES..].as_chunks().0;
        let d = words.iter().rev().fold(0, |d, w| d << 4 | u16::from_le_bytes(*w) >> 12);
        let d = f16::from_bits(d).to_f32();
        for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let scale = d * (2 * (u16::from_le_bytes(words[i / 8]) >> (i / 2 % 4 * 3) & 7) + 1) as f32;
            let high = block[HIGH + i / 2] >> (i % 2 * 4);
            let shift = if high & 8 != 0 { -SHIFT } else { SHIFT };
            *out = grid::IQ1.point(block[i] as usize | (high as usize & 7) << 8).map(|c| scale * (c + shift));
        }
    });
}

fn encode(values: &[f32], weights: &[f32], bytes: &mut [u8]) {
    each_block_weighted(values, weights, bytes, |x: &[f32; 256], w: &[f32; 256], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        if largest(x).is_none() {
            put(block, f16::from_le_bytes(NAN_SCALE));
            return;
        }
        let (groups, weights) = (x.as_chunks::<16>().0, w.as_chunks::<16>().0);
        let levels = |g: usize, inverse: f32| {
            let mut levels = [0.0; 16];
            let runs = groups[g].as_chunks::<8>().0.iter().zip(weights[g].as_chunks::<8>().0);
            for (levels, (x, w)) in levels.as_chunks_mut().0.iter_mut().zip(runs) {
                *levels = shifted(x, w, inverse).levels;
            }
            levels
        };
        let fits: [f32; 16] = std::array::from_fn(|g| fit::scale(&groups[g], &weights[g], tries(&groups[g]), |i| levels(g, i)));
        let (d, scales) = fit::scales(groups, weights, &fits, &FACTORS, levels);
        for (g, &scale) in scales.iter().enumerate() {
            let word = (scale as u16) << (g % 4 * 3);
            block[SCALES + g / 4 * 2] |= word as u8;
            block[SCALES + g / 4 * 2 + 1] |= (word >> 8) as u8;
        }
        for (i, (x, w)) in x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0).enumerate() {
            let best = shifted(x, w, reciprocal(d.to_f32() * FACTORS[scales[i / 2] as usize]));
            block[i] = best.points[0] as u8;
            block[HIGH + i / 2] |= ((best.points[0] >> 8) as u8 | u8::from(best.negative) << 3) << (i % 2 * 4);
        }
        put(block, d);
        let mut y = [0.0; 256];
        decode(block, &mut y);
        put(block, fit::settled(d, x, w, &y));
    });
}

/// Writes `d` into its four places.
fn put(block: &mut [u8; BYTES], d: f16) {
    for i in 0..4 {
        let high = &mut block[SCALES + 2 * i + 1];
        *high = *high & 15 | ((d.to_bits() >> (4 * i) & 15) as u8) << 4;
    }
}
