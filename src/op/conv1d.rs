//! Causal depthwise convolution along time with a carried state: Mamba's short convolution.
//!
//! `out[b, t, c] = act(bias[c] + sum_i w[c, i] * x'[b, t - (taps - 1) + i, c])`, where `x'` is the state's `taps - 1` rows followed by `x`; without
//! `state` the past is zero. After the call `state` holds the last `taps - 1` rows of `x'`, oldest first. `t = 1` is the decode step.
//! Taps 2 to 8. `t = 0` leaves the state alone. `out` may be `x` where `t = 1`.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// Causal depthwise convolution with state: see the [module](self).
    Conv1d = "conv1d";
    operands {
        /// `[batch, t, channels]`
        x: In,
        /// `[channels, taps]`
        w: Weight,
        /// `[batch, t, channels]`
        out: Out,
    }
    optional {
        /// `[channels]`
        bias: In,
        /// f32 `[batch, taps - 1, channels]`
        state: InOut,
    }
    fields {
        /// Applied last.
        act: Activation = Activation::None,
    }
}

super::descriptor::unwritten!(Conv1d);
