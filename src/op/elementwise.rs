//! One function of one or two tensors, element by element.
//!
//! Operands broadcast to `out` as numpy's do: aligned from the last dimension, an extent of 1 (or a stride of 0) repeats.
//! `out` may be `a` or `b`.
//!
//! - `max(x, 0)` and `clamp` keep NaN. silu and gelu give -0 at -inf. `softplus(x) = ln(1 + e^x)` without overflow.
//! - Two-operand kinds need `b`; the others refuse it.

use super::*;
use crate::{dtype::DType, layout::Spec};

words! {
    /// The function, of `a`, `b` and the parameters `alpha`, `beta`.
    Function {
        /// a + b
        Add = "add",
        /// a * b
        Mul = "mul",
        /// a + alpha * b: the scaled residual.
        AddScaled = "add-scaled",
        /// silu(a) * b
        SiluMul = "silu-mul",
        /// gelu_tanh(a) * b
        GeluTanhMul = "gelu-tanh-mul",
        /// gelu_erf(a) * b
        GeluErfMul = "gelu-erf-mul",
        /// a / (1 + exp(-a))
        Silu = "silu",
        /// 0.5 a (1 + tanh(sqrt(2/pi) (a + 0.044715 a^3)))
        GeluTanh = "gelu-tanh",
        /// 0.5 a (1 + erf(a / sqrt 2))
        GeluErf = "gelu-erf",
        /// max(a, 0)
        Relu = "relu",
        /// ln(1 + exp(a))
        Softplus = "softplus",
        /// 1 / (1 + exp(-a))
        Sigmoid = "sigmoid",
        /// tanh(a)
        Tanh = "tanh",
        /// alpha * tanh(a / alpha)
        Softcap = "softcap",
        /// min(max(a, alpha), beta)
        Clamp = "clamp",
        /// alpha * a + beta
        Scale = "scale",
        /// exp(a)
        Exp = "exp",
    }
}

descriptor! {
    /// `out = f(a, b)` element by element: see the [module](self).
    Elementwise = "elementwise";
    operands {
        /// Broadcasts to `out`.
        a: In,
        /// f32, f16 or bf16.
        out: Out,
    }
    optional {
        /// Broadcasts to `out`.
        b: In,
    }
    fields {
        /// The function.
        function: Function = Function::Scale,
        /// First parameter.
        alpha: Real = Real::ONE,
        /// Second parameter.
        beta: Real = Real::ZERO,
    }
}

super::descriptor::unwritten!(Elementwise);
