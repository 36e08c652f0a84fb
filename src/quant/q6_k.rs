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
//! `x = (d scale) (bits - 32)`. The encoder is a search of our own: per group the best of 19 grids by least squares,
//! heavier where magnitudes are large. A block with a NaN or an infinity gets the scale NaN, so that all of it decodes
//! to NaN.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_mut, largest, nearest, reciprocal, round};
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

fn encode(values: &[f32], bytes: &mut [u8]) {
    each_block_mut(values, bytes, |x: &[f32; 256], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        let [quants @ .., d0, d1] = block;
        if largest(x).is_none() {
            [*d0, *d1] = NAN_SCALE;
            return;
        }
        let mut fits = [0.0; 16];
        for (fit, x) in fits.iter_mut().zip(x.as_chunks::<16>().0) {
            *fit = fit_group(x);
        }
        // The largest scale becomes -128, the longer side of an i8.
        let largest = fits.iter().fold(0f32, |most, &s| if s.abs() > most.abs() { s } else { most });
        let d = f16::from_f32(largest / -128.0);
        [*d0, *d1] = d.to_le_bytes();
        let inverse = reciprocal(largest / -128.0);
        let (low, rest) = quants.split_at_mut(LOW);
        let (high, scales) = rest.split_at_mut(HIGH);
        for (g, ((x, fit), scale)) in x.as_chunks::<16>().0.iter().zip(fits).zip(scales).enumerate() {
            let s = round(fit * inverse).clamp(-128, 127);
            *scale = s as i8 as u8;
            // Against the scale as it will be decoded.
            let (inverse, at) = (reciprocal(d.to_f32() * s as f32), place(g));
            for (i, &x) in x.iter().enumerate() {
                let bits = (round(x * inverse).clamp(-32, 31) + 32) as u8;
                low[at.low + i] |= (bits & 15) << at.low_shift;
                high[at.high + i] |= bits >> 4 << at.high_shift;
            }
        }
    });
}

/// The scale that best gives `x` back as `scale * q` with `q` in -32..=31.
fn fit_group(x: &[f32; 16]) -> f32 {
    let x = x.map(f64::from); // no square of an f32 overflows here
    let extreme = x.iter().fold(0f64, |most, &x| if x.abs() > most.abs() { x } else { most });
    if extreme == 0.0 {
        return 0.0;
    }
    let mut best = (0.0, 0.0);
    for step in -9..=9 {
        let inverse = -(32.0 + 0.1 * step as f64) / extreme; // the extreme becomes -32, the longer side
        let mut sums = [[0f64; 4]; 2]; // in four lanes, for vectors
        for x in x.as_chunks::<4>().0 {
            for i in 0..4 {
                let q = nearest(x[i] * inverse).clamp(-32.0, 31.0);
                sums[0][i] += x[i] * x[i] * q * x[i];
                sums[1][i] += x[i] * x[i] * q * q;
            }
        }
        let [wqx, wqq] = sums.map(|lanes| lanes.iter().sum::<f64>());
        // Least squares leaves the error sum(x^4) - wqx^2 / wqq.
        if wqq > 0.0 && wqx * wqx / wqq > best.1 {
            best = (wqx / wqq, wqx * wqx / wqq);
        }
    }
    best.0 as f32
}
