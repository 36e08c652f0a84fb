//! Mamba-1's selective scan: a decay per channel and state.
//!
//! `dt' = dt + dt_bias[c]`, through softplus where `softplus`; `state[c, n] = exp(dt' a[c, n]) state[c, n] + dt' b[t, n] x[t, c]`;
//! `out[t, c] = (sum_n c[t, n] state[c, n] + d[c] x[t, c]) * silu(z[t, c])` (the last factor where `z` is given).
//! State in f32, carried in and out through `state`; without it, zero and dropped. `t = 0` leaves it alone.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// Selective state-space scan with a decay per channel and state: see the [module](self).
    SelectiveScan = "selective_scan";
    operands {
        /// `[batch, t, channels]`
        x: In,
        /// `[batch, t, channels]`
        dt: In,
        /// f32 `[channels, n]`
        a: In,
        /// `[batch, t, n]`
        b: In,
        /// `[batch, t, n]`
        c: In,
        /// `[batch, t, channels]`
        out: Out,
    }
    optional {
        /// f32 `[channels]`
        d: In,
        /// f32 `[channels]`
        dt_bias: In,
        /// `[batch, t, channels]`
        z: In,
        /// f32 `[batch, channels, n]`
        state: InOut,
    }
    fields {
        /// Passes dt through softplus.
        softplus: bool = false,
    }
}

super::descriptor::unwritten!(SelectiveScan);
