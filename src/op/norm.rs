//! RMS norm and layer norm over the last dimension, with what comes before and after them in one pass.
//!
//! In this order: `s = x`, or `residual + factor * x`, written to `sum` where present; `s *= silu(gate)`;
//! rms: `y = s / sqrt(mean(s^2) + eps)`; layer: `y = (s - mean(s)) / sqrt(var(s) + eps)` (variance over n);
//! `out = y * weight + bias`.
//!
//! - Sums are in f32 or better, whatever the dtypes. Rows are independent; zero rows are legal, and so is a row of zero
//!   elements (nothing is written). A row of zeros gives `bias` (or zeros); with `eps = 0` it gives NaN, as 0/0 does.
//! - NaN or infinity in a row spoils that row alone.
//! - `sum` may be `residual` or `x`; `out` may be `x`.

use super::*;
use crate::{dtype::DType, layout::Spec};

words! {
    /// Which norm.
    NormKind {
        /// Root mean square, no centring.
        Rms = "rms",
        /// Mean and variance.
        Layer = "layer",
    }
}

descriptor! {
    /// `out = norm(residual + factor * x) * weight + bias`: see the [module](self).
    Norm = "norm";
    operands {
        /// `[.., n]`
        x: In,
        /// `[.., n]`
        out: Out,
    }
    optional {
        /// `[n]`
        weight: In,
        /// `[n]`
        bias: In,
        /// `[.., n]`
        residual: In,
        /// `[.., n]`
        gate: In,
        /// `[.., n]`: what was normalized, for the next residual.
        sum: Out,
    }
    fields {
        /// Rms or layer.
        kind: NormKind = NormKind::Rms,
        /// Added to the mean square or the variance.
        eps: Real = Real::new(1e-5),
        /// Multiplies `x` before the residual is added.
        factor: Real = Real::ONE,
    }
}

super::descriptor::unwritten!(Norm);
