//! The k largest of each row, with their indices, and optionally a softmax over them: a router's choice of experts.
//!
//! Sorted by value, largest first; equal values (and +0, -0) by index, lowest first; NaN counts as larger than everything. `k <= n`.
//! With `softmax` the values are `softmax` over the k chosen, in f32; otherwise they are copies.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `values, indices = the k largest of x per row`: see the [module](self).
    TopK = "top_k";
    operands {
        /// `[rows, n]`
        x: In,
        /// `[rows, k]`
        values: Out,
        /// i32 `[rows, k]`
        indices: Out,
    }
    optional {}
    fields {
        /// Normalizes the chosen values.
        softmax: bool = false,
    }
}

super::descriptor::unwritten!(TopK);
