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
//! `x = d s nibble - dmin m`, in this order of rounding: `(d s) nibble - (dmin m)`. The encoder is a search of our own:
//! per group the best of 21 grids by least squares, heavier where magnitudes are large. A block with a NaN or an
//! infinity gets the scale NaN, so that all of it decodes to NaN.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_mut, largest, nearest, reciprocal, round};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::Q4_K, decode, encode };
const BYTES: usize = 2 + 2 + 12 + 256 / 2;
const _: () = assert!(DType::Q4_K.block().0 == 256 && DType::Q4_K.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[d0, d1, m0, m1, rest @ ..]: &[u8; BYTES], out: &mut [f32; 256]| {
        let (d, dmin) = (f16::from_le_bytes([*d0, *d1]).to_f32(), f16::from_le_bytes([*m0, *m1]).to_f32());
        let (groups, q) = rest.split_at(12);
        for (c, (out, q)) in out.as_chunks_mut::<64>().0.iter_mut().zip(q.as_chunks::<32>().0).enumerate() {
            let (low, high) = out.split_at_mut(32);
            for (j, shift, out) in [(2 * c, 0, low), (2 * c + 1, 4, high)] {
                let (s, m) = group(groups, j);
                let (s, m) = (d * s as f32, dmin * m as f32);
                for (x, &q) in out.iter_mut().zip(q) {
                    *x = s * (q >> shift & 15) as f32 - m;
                }
            }
        }
    });
}

/// Scale and offset of group `j`, unpacked.
fn group(groups: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (groups[j] & 63, groups[j + 4] & 63)
    } else {
        (groups[j + 4] & 15 | groups[j - 4] >> 6 << 4, groups[j + 4] >> 4 | groups[j] >> 6 << 4)
    }
}

fn encode(values: &[f32], bytes: &mut [u8]) {
    each_block_mut(values, bytes, |x: &[f32; 256], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        let [d0, d1, m0, m1, rest @ ..] = block;
        if largest(x).is_none() {
            [*d0, *d1] = NAN_SCALE;
            return;
        }
        let mut fits = [(0.0, 0.0); 8];
        for (fit, x) in fits.iter_mut().zip(x.as_chunks::<32>().0) {
            *fit = fit_group(x);
        }
        let most = fits.iter().fold((0f32, 0f32), |most, fit| (most.0.max(fit.0), most.1.max(fit.1)));
        let (d, dmin) = (f16::from_f32(most.0 / 63.0), f16::from_f32(most.1 / 63.0));
        ([*d0, *d1], [*m0, *m1]) = (d.to_le_bytes(), dmin.to_le_bytes());
        let (to_s, to_m) = (reciprocal(most.0 / 63.0), reciprocal(most.1 / 63.0));
        let (groups, q) = rest.split_at_mut(12);
        for (j, (fit, x)) in fits.iter().zip(x.as_chunks::<32>().0).enumerate() {
            let (s, m) = (round(fit.0 * to_s).clamp(0, 63) as u8, round(fit.1 * to_m).clamp(0, 63) as u8);
            if j < 4 {
                groups[j] |= s;
                groups[j + 4] |= m;
            } else {
                groups[j - 4] |= s >> 4 << 6;
                groups[j] |= m >> 4 << 6;
                groups[j + 4] = s & 15 | (m & 15) << 4;
            }
            // Against the numbers as they will be decoded.
            let (inverse, offset) = (reciprocal(d.to_f32() * s as f32), dmin.to_f32() * m as f32);
            for (q, &x) in q[j / 2 * 32..][..32].iter_mut().zip(x) {
                *q |= (round((x + offset) * inverse).clamp(0, 15) as u8) << (j % 2 * 4);
            }
        }
    });
}

/// The `(scale, offset)`, neither negative, that best give `x` back as `scale * q - offset` with `q` in 0..=15.
fn fit_group(x: &[f32; 32]) -> (f32, f32) {
    let x = x.map(f64::from); // no square of an f32 overflows here
    let (low, high) = x.iter().fold((0f64, f64::MIN), |(low, high), &x| (low.min(x), high.max(x)));
    if high <= low {
        return (0.0, (0.0 - low) as f32); // all the same and not positive
    }
    let typical = (x.iter().map(|x| x * x).sum::<f64>() / 32.0).sqrt();
    let weights = x.map(|x| typical + x.abs());
    let (mut w, mut wx, mut wxx) = (0.0, 0.0, 0.0);
    for (x, v) in x.iter().zip(&weights) {
        (w, wx, wxx) = (w + v, wx + v * x, wxx + v * x * x);
    }
    let mut best = ((0.0, 0.0), f64::INFINITY);
    for step in 0..=20 {
        let inverse = (14.0 + 0.1 * step as f64) / (high - low);
        let mut sums = [[0f64; 4]; 3]; // in four lanes, for vectors
        for (x, v) in x.as_chunks::<4>().0.iter().zip(weights.as_chunks::<4>().0) {
            for i in 0..4 {
                let q = nearest((x[i] - low) * inverse).min(15.0);
                sums[0][i] += v[i] * q;
                sums[1][i] += v[i] * q * q;
                sums[2][i] += v[i] * q * x[i];
            }
        }
        let [wq, wqq, wqx] = sums.map(|lanes| lanes.iter().sum::<f64>());
        // Least squares for scale and offset, or for the scale alone where the offset would be negative.
        let determinant = w * wqq - wq * wq;
        let (mut s, mut m) = ((w * wqx - wx * wq) / determinant, (wq * wqx - wqq * wx) / determinant);
        if m.is_nan() || m < 0.0 {
            (s, m) = (wqx / wqq, 0.0);
        }
        // The sum of v (s q - m - x)^2.
        let error = s * s * wqq + m * m * w + wxx - 2.0 * (s * m * wq + s * wqx - m * wx);
        if s > 0.0 && error < best.1 {
            best = ((s, m), error);
        }
    }
    (best.0.0 as f32, best.0.1 as f32)
}
