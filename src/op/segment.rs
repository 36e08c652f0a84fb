//! Sums and softmax over segments of rows, as graph models of materials need.
//!
//! `segments[i]` (i32, in any order) names the segment of row `i`; outside `0 .. count` the row belongs to none.
//! `sum`: `out[s] = sum of rows of s`, `out [count, d]`, empty segments zero. `softmax`: per column over the rows of a segment,
//! `out [rows, d]`, rows of no segment zero, a segment whose column is -inf throughout zero. `count` is `out`'s row count for
//! `sum`, the field for `softmax`.

use super::*;
use crate::{dtype::DType, layout::Spec};

words! {
    /// What is computed of a segment.
    SegmentKind {
        /// Sum of rows.
        Sum = "sum",
        /// Softmax down each column.
        Softmax = "softmax",
    }
}

descriptor! {
    /// Per segment of rows: a sum, or a softmax: see the [module](self).
    Segment = "segment";
    operands {
        /// `[rows, d]`
        x: In,
        /// i32 `[rows]`
        segments: In,
        /// `[count, d]` for sum, `[rows, d]` for softmax.
        out: Out,
    }
    optional {}
    fields {
        /// What to compute.
        kind: SegmentKind = SegmentKind::Sum,
        /// Number of segments, for softmax.
        count: usize = 0,
    }
}

super::descriptor::unwritten!(Segment);
