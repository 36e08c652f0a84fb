//! TQ2_0: 256 numbers of -1, 0 or 1, four to a byte, that share a scale.
//!
//! ```text
//! byte 0               64  66
//!      | q[0] ... q[63] | d |     d: f16; bits 2 p and 2 p + 1 of q[32 h + i]: element 128 h + 32 p + i
//! ```
//!
//! `x = (bits - 1) * d`; bits 3, never encoded, decode to 2 d. Encoding gives the bytes of GGUF's reference encoder,
//! with TQ1_0's scale and rounding, its error (6.461e-1 on normal numbers of variance 1) and its corners; a block with
//! a NaN or an infinity has all bits zero.

use half::f16;

use super::{Format, each_block, each_block_mut, pack_pairs, pairs, tq1_0::digits};
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::TQ2_0, decode, encode };
const BYTES: usize = 256 / 4 + 2;
const _: () = assert!(DType::TQ2_0.block().0 == 256 && DType::TQ2_0.block().1 == BYTES);

fn decode(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |[q @ .., d0, d1]: &[u8; BYTES], out: &mut [f32; 256]| {
        let d = f16::from_le_bytes([*d0, *d1]).to_f32();
        *out = pairs(q).map(|q| (q as i32 - 1) as f32 * d);
    });
}

fn encode(values: &[f32], _: &[f32], bytes: &mut [u8]) {
    each_block_mut(values, bytes, |x: &[f32; 256], block: &mut [u8; BYTES]| {
        let [q @ .., d0, d1] = block;
        let (d, digits) = digits(x);
        ([*d0, *d1], *q) = (d, pack_pairs(&digits));
    });
}
