//! Matrix multiplication per group: the experts of a mixture, over rows sorted by expert.
//!
//! Rows `offsets[g] .. offsets[g + 1]` of `x` are multiplied by `w[g]`: `out[i, j] = act(sum_k x[i, k] w[g, j, k])`, or with
//! `up` the gated pair `act(x w[g]ᵀ) * (x up[g]ᵀ)`, then times `row_scale[i]` (the router's weight).
//!
//! - `offsets` is i32 `[groups + 1]`, read on the device at run time. It is clamped: each entry to `0 ..= rows` and to at
//!   least the one before it. Rows in no group are zero.
//! - Empty groups cost nothing. `k = 0` gives zeros.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out[rows of g] = row_scale * act(x w[g]ᵀ) (* x up[g]ᵀ)`: see the [module](self).
    GroupedMatmul = "grouped_matmul";
    operands {
        /// `[rows, k]`, sorted by group.
        x: In,
        /// `[groups, n, k]`
        w: Weight,
        /// i32 `[groups + 1]`
        offsets: In,
        /// `[rows, n]`
        out: Out,
    }
    optional {
        /// `[groups, n, k]`: the second factor of a gated pair.
        up: Weight,
        /// f32 `[rows]`
        row_scale: In,
    }
    fields {
        /// Applied to the first product.
        act: Activation = Activation::None,
    }
}

super::descriptor::unwritten!(GroupedMatmul);
