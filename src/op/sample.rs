//! Drawing a token from logits, on the device.
//!
//! Per row: `temperature = 0` takes the arg-max (first of equals; NaN first). Otherwise logits are divided by the temperature, the
//! `top_k` largest kept (0 keeps all; ties by lowest index), softmaxed, then the shortest prefix in descending order whose sum reaches `top_p` kept (at least one),
//! and the first index of the sorted prefix taken at which the cumulative probability exceeds `u * total`.
//!
//! `u` is uniform in [0, 1): `(h >> 8) / 2^24`, where `h` is the high word of splitmix64 seeded with
//! `seed[0] + 2^32 seed[1] + row * 0x9e3779b97f4a7c15` (the two i32 of `seed` as u32, all wrapping), one step. The same on every device; two devices may differ only where
//! `u` lies within rounding of a boundary. A row of only -inf gives index 0; a row with NaN or +inf gives the first NaN, else the first +inf; `n = 0` gives -1.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// One index per row, drawn by the row's logits: see the [module](self).
    Sample = "sample";
    operands {
        /// `[rows, n]`
        logits: In,
        /// i32 `[2]`: low and high word; change it at every step.
        seed: In,
        /// i32 `[rows]`
        out: Out,
    }
    optional {}
    fields {
        /// 0 is greedy.
        temperature: Real = Real::ONE,
        /// How many of the largest to keep; 0 is all.
        top_k: usize = 0,
        /// Probability mass to keep.
        top_p: Real = Real::ONE,
    }
}

super::descriptor::unwritten!(Sample);
