//! IQ1_S: 256 numbers in 8 groups of 32, 11 bits for each 8 numbers, with a scale and a shift for the group.
//!
//! ```text
//! byte 0   2            34                      50
//!      | d | points[32] | groups[0] ... groups[7] |     d: f16
//! group: u16, bits 3 j .. 3 j + 3 are bits 8 .. 11 of point j of the group, 12 .. 15 the scale, 15 the shift's sign
//! ```
//!
//! Points of the grid of 2048, of coordinates -1, 0 and 1. `x = (d (2 scale + 1)) (coordinate + shift)`, the shift an
//! eighth up or down. The encoder is a search of our own, by least squares. Mean squared error on normal numbers of
//! variance 1: 2.000e-1. A block with a NaN or an infinity gets the scale NaN, so that all of it decodes to NaN.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_weighted, fit, grid, largest, reciprocal};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::IQ1_S, decode, encode };
const GROUPS: usize = 2 + 32;
const BYTES: usize = GROUPS + 8 * 2;
const _: () = assert!(DType::IQ1_S.block().0 == 256 && DType::IQ1_S.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; BYTES], out: &mut [f32; 256]| {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let (points, groups) = block[2..].split_at(GROUPS - 2);
        for (i, (out, &point)) in out.as_chunks_mut::<8>().0.iter_mut().zip(points).enumerate() {
            let group = u16::from_le_bytes(groups.as_chunks().0[i / 4]);
            let scale = d * (2 * (group >> 12 & 7) + 1) as f32;
            let shift = if group >> 15 == 1 { -SHIFT } else { SHIFT };
            let high = (group >> (i % 4 * 3) & 7) as usize;
            *out = grid::IQ1.point(point as usize | high << 8).map(|c| scale * (c + shift));
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
        let (groups, weights) = (x.as_chunks::<32>().0, w.as_chunks::<32>().0);
        let levels = |g: usize, inverse: f32| shifted(&groups[g], &weights[g], inverse).levels;
        let fits: [f32; 8] = std::array::from_fn(|g| fit::scale(&groups[g], &weights[g], tries(&groups[g]), |i| levels(g, i)));
        let (d, scales) = fit::scales(groups, weights, &fits, &FACTORS, levels);
        block[..2].copy_from_slice(&d.to_le_bytes());
        for (g, ((x, w), scale)) in groups.iter().zip(weights).zip(scales).enumerate() {
            let best = shifted(x, w, reciprocal(d.to_f32() * FACTORS[scale as usize]));
            let mut group = (scale as u16) << 12 | (best.negative as u16) << 15;
            for (j, point) in best.points.into_iter().enumerate() {
                block[2 + 4 * g + j] = point as u8;
                group |= (point >> 8) << (3 * j);
            }
            block[GROUPS + 2 * g..][..2].copy_from_slice(&group.to_le_bytes());
        }
        fit::settle(x, w, block, 0, decode);
    });
}

/// What a scale's bits multiply `d` by.
pub(super) const FACTORS: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
pub(super) const SHIFT: f32 = 0.125;

/// Reciprocal scales to try for a group.
pub(super) fn tries<const N: usize>(x: &[f32; N]) -> impl Iterator<Item = f32> {
    fit::around(largest(x).unwrap_or(0.0).abs(), 1.0, 0.8, 2.4, 17)
}

/// Numbers that share a shift, rounded.
pub(super) struct Shifted<const N: usize> {
    pub negative: bool,
    /// Of each 8 numbers.
    pub points: [u16; 4],
    pub levels: [f32; N],
}

/// `x` times a reciprocal scale rounded to points with the better of both shifts.
pub(super) fn shifted<const N: usize>(x: &[f32; N], w: &[f32; N], inverse: f32) -> Shifted<N> {
    let with = |negative: bool| {
        let shift = if negative { -SHIFT } else { SHIFT };
        let (mut points, mut levels, mut error) = ([0; 4], [0.0; N], 0.0);
        let runs = x.as_chunks().0.iter().zip(w.as_chunks().0).zip(levels.as_chunks_mut::<8>().0).zip(&mut points);
        for (((x, w), levels), to) in runs {
            let v = x.map(|x| x * inverse - shift);
            let (point, coordinates) = grid::IQ1.nearest(v, w);
            (*to, *levels) = (point, coordinates.map(|c| c + shift));
            error += (0..8).map(|i| w[i] * (v[i] - coordinates[i]) * (v[i] - coordinates[i])).sum::<f32>();
        }
        (error, Shifted { negative, points, levels })
    };
    let (up, down) = (with(false), with(true));
    if down.0 < up.0 { down.1 } else { up.1 }
}
