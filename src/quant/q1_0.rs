//! Q1_0: 128 signs that share a magnitude.
//!
//! ```text
//! byte 0   2                              18
//!      | d | q[0] q[1] ...          q[15] |     d: f16; bit b of q[i]: element 8 i + b
//! ```
//!
//! `x = d` where the bit is set, else `-d`. Encoding is ggml's: `d` the mean magnitude, summed in f32 from the first to
//! the last; the bit is set for numbers not below zero. That is the least squares fit: mean squared error on normal
//! numbers of variance 1: 3.598e-1. A block with a NaN or an infinity gets the scale NaN, so that all of it decodes to
//! NaN.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_mut, largest};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::Q1_0, decode, encode };
const BYTES: usize = 2 + 128 / 8;
const _: () = assert!(DType::Q1_0.block().0 == 128 && DType::Q1_0.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[d0, d1, q @ ..]: &[u8; BYTES], out: &mut [f32; 128]| {
        let d = f16::from_le_bytes([*d0, *d1]).to_f32();
        for (i, x) in out.iter_mut().enumerate() {
            *x = if q[i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
        }
    });
}

fn encode(values: &[f32], _: &[f32], bytes: &mut [u8]) {
    each_block_mut(values, bytes, |x: &[f32; 128], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        let [d0, d1, q @ ..] = block;
        if largest(x).is_none() {
            [*d0, *d1] = NAN_SCALE;
            return;
        }
        let mean = x.iter().fold(0f32, |sum, x| sum + x.abs()) / 128.0;
        [*d0, *d1] = f16::from_f32(mean).to_le_bytes();
        for (i, x) in x.iter().enumerate() {
            q[i / 8] |= u8::from(*x >= 0.0) << (i % 8);
        }
    });
}
