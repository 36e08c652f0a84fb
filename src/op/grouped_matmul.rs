//! Matrix multiplication per group: the experts of a mixture, over rows sorted by expert.
//!
//! Rows `offsets[g] .. offsets[g + 1]` of `x` are multiplied by `w[g]`: `out[i, j] = act(sum_k x[i, k] w[g, j, k])`, or with
//! `up` the gated pair `act(x w[g]ᵀ) * (x up[g]ᵀ)`, then times `row_scale[i]` (the router's weight).
//!
//! - `offsets` is i32 `[groups + 1]`, read on the device at run time. It is clamped: each entry to `0 ..= rows` and to at
//!   least the one before it. Rows in no group are zero.
//! - Empty groups cost nothing. `k = 0` gives zeros.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out[rows of g] = row_scale * act(x w[g]ᵀ) (* x up[g]ᵀ)`: see the [module](self).
    GroupedMatmul = "grouped_matmul";
    operands {
        /// `[rows, k]`, sorted by group.
        x: In,
        /// `[groups, n, k]`
        w: Weight,
        /// i32 `[groups + 1]`
        offsets: In,
        /// `[rows, n]`
        out: Out,
    }
    optional {
        /// `[groups, n, k]`: the second factor of a gated pair.
        up: Weight,
        /// f32 `[rows]`
        row_scale: In,
    }
    fields {
        /// Applied to the first product.
        act: Activation = Activation::None,
    }
}

/// The rows of each group, as the offsets say once clamped.
pub(crate) fn segments(offsets: &Array, rows: usize) -> Vec<std::ops::Range<usize>> {
    let clamped = offsets.data.iter().scan(0, |low, &o| {
        *low = (o.max(0.0) as usize).min(rows).max(*low);
        Some(*low)
    });
    let clamped: Vec<usize> = clamped.collect();
    clamped.windows(2).map(|w| w[0]..w[1]).collect()
}

/// `n` offsets into `rows` rows: rising, skewed, with empty groups, and in longer lists with rows in no group and an entry
/// beyond the end.
pub(crate) fn fill_offsets(n: usize, rows: usize, rng: &mut Rng) -> Vec<f64> {
    let mut all: Vec<f64> = (0..n).map(|_| ((rows + 1) as f64 * rng.unit().powi(2)).floor()).collect();
    all.sort_by(f64::total_cmp);
    let few = n < 4;
    if let Some(first) = all.first_mut() {
        *first = if few { 0.0 } else { (rows / 8) as f64 };
    }
    if let Some(last) = all.last_mut().filter(|_| n > 1) {
        *last = if few { rows } else if n < 6 { rows - rows / 8 } else { rows + 3 } as f64;
    }
    if n > 4 {
        all[2] = all[1];
    }
    all
}

super::descriptor::unwritten!(GroupedMatmul);
