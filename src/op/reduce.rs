//! One number per row, or a row divided by its norm.
//!
//! Reduces the last dimension: `x [.., n]` to `out [.., 1]` (`l2-normalize`: `[.., n]`). Any other dimension is reduced by giving
//! strides that put it last: mean pooling of `[batch, t, d]` over tokens is `x` as `[batch, d, t]`.
//!
//! - `sum`, `mean`, `log-sum-exp`, `l2-normalize` accumulate in f32 or better. `max` and `arg-max` are exact: NaN beats every number,
//!   the first of equals wins. `arg-max` gives i32.
//! - Empty rows: sum 0, mean 0, max and log-sum-exp -inf, arg-max -1.
//! - `mask` (u8, broadcasts to `x`; 0 hides) is honoured by all kinds but l2-normalize; a fully masked row is an empty row. So
//!   `mean` with a mask is masked mean pooling.
//! - `l2-normalize`: `x / max(|x|, eps)`.

use super::*;
use crate::{dtype::DType, layout::Spec};

words! {
    /// What is computed of a row.
    Reduction {
        /// Sum.
        Sum = "sum",
        /// Sum over count.
        Mean = "mean",
        /// Largest element.
        Max = "max",
        /// Index of the largest element, the first of equals.
        ArgMax = "arg-max",
        /// ln(sum(exp(x)))
        LogSumExp = "log-sum-exp",
        /// x / max(|x|, eps)
        L2Normalize = "l2-normalize",
    }
}

descriptor! {
    /// `out[.., 0] = kind(x[.., :])`: see the [module](self).
    Reduce = "reduce";
    operands {
        /// `[.., n]`
        x: In,
        /// `[.., 1]`, or `[.., n]` for l2-normalize; i32 for arg-max.
        out: Out,
    }
    optional {
        /// u8, broadcasts to `x`.
        mask: In,
    }
    fields {
        /// What to compute.
        kind: Reduction = Reduction::Sum,
        /// Lower limit of the norm in l2-normalize.
        eps: Real = Real::new(1e-12),
    }
}

super::descriptor::unwritten!(Reduce);
