//! Q8_1: 32 signed bytes that share a scale, and their sum: the form of activations beside 4- and 5-bit weights.
//!
//! ```text
//! byte 0   2   4                              36
//!      | d | s | q[0] q[1] ...          q[31] |     d, s: f16, q: i8
//! ```
//!
//! `x[i] = q[i] * d`; `s = d * (q[0] + ... + q[31])`, with `d` before rounding to f16, plays no part in decoding.
//! Encoding is Q8_0's. Mean squared error on normal numbers of variance 1: 2.861e-5. The block is ggml's, of 36 bytes;
//! lists that say 40 mean an older one with f32 scales, which no file holds.

use half::f16;

use super::{Format, NAN_SCALE, each_block, each_block_mut, largest, reciprocal, round};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::Q8_1, decode, encode };
const BYTES: usize = 2 + 2 + 32;
const _: () = assert!(DType::Q8_1.block().0 == 32 && DType::Q8_1.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[d0, d1, _, _, q @ ..]: &[u8; BYTES], out: &mut [f32; 32]| {
        let d = f16::from_le_bytes([*d0, *d1]).to_f32();
        *out = q.map(|q| q as i8 as f32 * d);
    });
}

fn encode(values: &[f32], _: &[f32], bytes: &mut [u8]) {
    each_block_mut(values, bytes, |x: &[f32; 32], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        let [d0, d1, s0, s1, q @ ..] = block;
        let Some(max) = largest(x) else {
            ([*d0, *d1], [*s0, *s1]) = (NAN_SCALE, NAN_SCALE);
            return;
        };
        let d = max.abs() / 127.0;
        let inverse = reciprocal(d);
        let rounded = x.map(|x| round(x * inverse));
        let sum = rounded.iter().sum::<i32>() as f32 * d;
        ([*d0, *d1], [*s0, *s1]) = (f16::from_f32(d).to_le_bytes(), f16::from_f32(sum).to_le_bytes());
        *q = rounded.map(|q| q as u8);
    });
}
