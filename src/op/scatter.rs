//! Adding rows into a tensor by index: the combine step of a mixture of experts.
//!
//! `out[index[i]] += weight[i] * x[i]`, in the order of `i` (so the result is reproducible); an index outside `out` adds nothing.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out[index[i]] += weight[i] * x[i]`: see the [module](self).
    Scatter = "scatter";
    operands {
        /// `[n, d]`
        x: In,
        /// i32 `[n]`
        index: In,
        /// `[rows, d]`
        out: InOut,
    }
    optional {
        /// f32 `[n]`
        weight: In,
    }
    fields {}
}

super::descriptor::unwritten!(Scatter);
