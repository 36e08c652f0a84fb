//! Copying with any strides and to any dtype: convert, quantize, dequantize, permute, and (into slices) concatenate.
//!
//! `out[i] = x[i]`, same shape. Bit-exact on every device: floats round to nearest even, NaN stays NaN, beyond the range f16 and
//! bf16 give infinities and fp8 saturates (e4m3: 448; e5m2: 57344; NaN kept); floats to integers round to nearest even and saturate, NaN
//! gives 0; quantized formats are encoded as GGUF's own reference encoder does (see `quant`). Same dtype: the bytes.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out = x` in another dtype or layout: see the [module](self).
    Convert = "convert";
    operands {
        /// Any dtype and layout.
        x: In,
        /// The same shape.
        out: Out,
    }
    optional {}
    fields {}
}

super::descriptor::unwritten!(Convert);
