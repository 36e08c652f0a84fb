//! Mamba-2's state-space recurrence (SSD), for prefill and for the single step.
//!
//! Per batch, head `h` (group `g = h / (heads / groups)`) and time: `dt' = dt + dt_bias[h]`, through softplus where `softplus`;
//! `state[p, n] = exp(dt' * a[h]) * state[p, n] + dt' * b[t, g, n] * x[t, h, p]`; `out[t, h, p] = sum_n c[t, g, n] * state[p, n] + d[h] * x[t, h, p]`.
//!
//! - `a` holds `-exp(A_log)`: negative numbers. State in f32, carried in and out through `state`; without it, zero and dropped.
//! - `t = 0` leaves the state alone. Kernels may compute in chunks of any length; the bound is the same.
//! - The magnitude that errors are relative to is the same recurrence over absolute values.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// Selective state-space scan with a scalar decay per head: see the [module](self).
    SsmScan = "ssm_scan";
    operands {
        /// `[batch, t, heads, p]`
        x: In,
        /// `[batch, t, heads]`
        dt: In,
        /// f32 `[heads]`
        a: In,
        /// `[batch, t, groups, n]`
        b: In,
        /// `[batch, t, groups, n]`
        c: In,
        /// `[batch, t, heads, p]`
        out: Out,
    }
    optional {
        /// f32 `[heads]`
        d: In,
        /// f32 `[heads]`
        dt_bias: In,
        /// f32 `[batch, heads, p, n]`
        state: InOut,
    }
    fields {
        /// Passes dt through softplus.
        softplus: bool = false,
    }
}

super::descriptor::unwritten!(SsmScan);
