//! Q8_K: 256 signed bytes that share a scale, and the sums of 16: the form of activations beside blocks of 256.
//!
//! ```text
//! byte 0   4                  260              292
//!      | d | q[0] ...  q[255] | sums[0] ... [15] |     d: f32, q: i8, sums: i16
//! ```
//!
//! `x[i] = q[i] * d`; `sums[j] = q[16 j] + ... + q[16 j + 15]` plays no part in decoding. Encoding gives ggml's bytes:
//! the element of the largest magnitude (the first of equals) becomes -127, halves to even. Mean squared error on
//! normal numbers of variance 1: 4.808e-5. A block with a NaN or an infinity gets the scale NaN, so that all of it
//! decodes to NaN; one whose reciprocal overflows is all zeros.

use super::{Format, each_block, each_block_mut, largest, reciprocal};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::Q8_K, decode, encode };
const BYTES: usize = 4 + 256 + 2 * 256 / 16;
const _: () = assert!(DType::Q8_K.block().0 == 256 && DType::Q8_K.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[d0, d1, d2, d3, q @ ..]: &[u8; BYTES], out: &mut [f32; 256]| {
        let d = f32::from_le_bytes([*d0, *d1, *d2, *d3]);
        for (x, &q) in out.iter_mut().zip(q) {
            *x = q as i8 as f32 * d;
        }
    });
}

fn encode(values: &[f32], _: &[f32], bytes: &mut [u8]) {
    each_block_mut(values, bytes, |x: &[f32; 256], block: &mut [u8; BYTES]| {
        *block = [0; BYTES];
        let [d0, d1, d2, d3, rest @ ..] = block;
        let Some(max) = largest(x) else {
            [*d0, *d1, *d2, *d3] = f32::NAN.to_le_bytes();
            return;
        };
        let inverse = Some(-127.0 / max).filter(|i| i.is_finite()).unwrap_or(0.0);
        [*d0, *d1, *d2, *d3] = reciprocal(inverse).to_le_bytes();
        let (q, sums) = rest.split_at_mut(256);
        for ((x, q), sum) in x.as_chunks::<16>().0.iter().zip(q.as_chunks_mut::<16>().0).zip(sums.as_chunks_mut().0) {
            let rounded = x.map(|x| (x * inverse).round_ties_even() as i8);
            *q = rounded.map(|q| q as u8);
            *sum = rounded.iter().map(|&q| q as i16).sum::<i16>().to_le_bytes();
        }
    });
}
