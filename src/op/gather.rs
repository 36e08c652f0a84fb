//! Rows of a table by index: embeddings, also straight from quantized tables.
//!
//! `out[i] = scale * table[index[i]]`, converted to `out`'s dtype. An index outside the table gives a row of zeros.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out[i] = scale * table[index[i]]`: see the [module](self).
    Gather = "gather";
    operands {
        /// `[rows, d]` of any dtype.
        table: Weight,
        /// i32 `[n]`
        index: In,
        /// `[n, d]`
        out: Out,
    }
    optional {}
    fields {
        /// Multiplies the rows (Granite's embedding multiplier).
        scale: Real = Real::ONE,
    }
}

super::descriptor::unwritten!(Gather);
