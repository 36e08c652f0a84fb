//! Softmax over the last dimension.
//!
//! `out = exp(scale * x + mask - max) / sum`, computed in f32 with the maximum taken out; `log`: its natural logarithm.
//! A row of -inf only (fully masked) gives zeros (with `log`: -inf); a row with NaN or +inf gives NaN throughout. Rows of
//! zero elements write nothing. `out` may be `x`.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out = softmax(scale * x + mask)` per row: see the [module](self).
    Softmax = "softmax";
    operands {
        /// `[.., n]`
        x: In,
        /// `[.., n]`
        out: Out,
    }
    optional {
        /// Added; broadcasts to `x`.
        mask: In,
    }
    fields {
        /// Multiplies x.
        scale: Real = Real::ONE,
        /// Returns the logarithm.
        log: bool = false,
    }
}

super::descriptor::unwritten!(Softmax);
