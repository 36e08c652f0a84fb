//! General convolution in one, two or three dimensions: patch embedding, audio front ends, voxel grids.
//!
//! `out[b, o, p..] = act(bias[o] + sum w[o, i, r..] * x[b, g * cin/groups + i, p * stride + r * dilation - pad ..])`, zero beyond the edges. `x` is
//! `[batch, cin, spatial..]`, `w` `[cout, cin / groups, taps..]`, `out` `[batch, cout, spatial'..]` with
//! `spatial' = (spatial + 2 pad - dilation (taps - 1) - 1) / stride + 1` (rounded down). Stride, pad and dilation are the same in every dimension.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// Cross-correlation with stride, padding, dilation and groups: see the [module](self).
    Conv = "conv";
    operands {
        /// `[batch, cin, spatial..]`, rank 3 to 5.
        x: In,
        /// `[cout, cin / groups, taps..]`
        w: Weight,
        /// `[batch, cout, spatial'..]`
        out: Out,
    }
    optional {
        /// `[cout]`
        bias: In,
    }
    fields {
        /// Step of the window.
        stride: usize = 1,
        /// Zeros before and after each dimension.
        pad: usize = 0,
        /// Distance between taps.
        dilation: usize = 1,
        /// Channels are split into this many independent groups.
        groups: usize = 1,
        /// Applied last.
        act: Activation = Activation::None,
    }
}

super::descriptor::unwritten!(Conv);
