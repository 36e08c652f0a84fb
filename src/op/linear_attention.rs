//! Linear attention with a random-feature map (MoLFormer and its family).
//!
//! `f(x) = relu(x omega) + eps` per head; `out[i] = f(q_i) . S_i / (f(q_i) . z_i + eps)` with `S = sum_j f(k_j) v_jᵀ` and
//! `z = sum_j f(k_j)`, over all valid `j` or, when causal, `j <= i`.
//!
//! - `lengths` (i32 `[batch]`, clamped to `0 ..= t`): keys beyond are ignored, query rows beyond are zero.
//! - A row whose denominator is 0 is zero.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// Attention whose cost is linear in length: see the [module](self).
    LinearAttention = "linear_attention";
    operands {
        /// `[batch, t, heads, d]`
        q: In,
        /// `[batch, t, heads, d]`
        k: In,
        /// `[batch, t, heads, dv]`
        v: In,
        /// f32 `[d, features]`
        omega: Weight,
        /// `[batch, t, heads, dv]`
        out: Out,
    }
    optional {
        /// i32 `[batch]`
        lengths: In,
    }
    fields {
        /// Added to features and to the denominator.
        eps: Real = Real::new(1e-6),
        /// Hides later positions.
        causal: bool = false,
    }
}

super::descriptor::unwritten!(LinearAttention);
