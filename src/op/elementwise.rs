//! One function of one or two tensors, element by element.
//!
//! Operands broadcast to `out` as numpy's do: aligned from the last dimension, an extent of 1 (or a stride of 0)
//! repeats. `out` may be `a` or `b`.
//!
//! - `max(x, 0)` and `clamp` keep NaN. silu and gelu give -0 at -inf. `softplus(x) = ln(1 + e^x)` without overflow.
//! - Two-operand functions need `b`; the others refuse it. A parameter that the function does not use stays at its
//!   default; softcap needs `alpha > 0`, clamp `alpha <= beta`.

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

impl Function {
    /// True for the functions of `a` and `b`; the others refuse `b`.
    pub fn takes_b(self) -> bool {
        use Function::*;
        matches!(self, Add | Mul | AddScaled | SiluMul | GeluTanhMul | GeluErfMul)
    }

    fn takes_alpha(self) -> bool {
        matches!(self, Function::AddScaled | Function::Softcap | Function::Clamp | Function::Scale)
    }

    fn takes_beta(self) -> bool {
        matches!(self, Function::Clamp | Function::Scale)
    }

    /// Arithmetic per element, an exponential or an error function counted as one.
    fn flops(self) -> u64 {
        use Function::*;
        match self {
            Add | Mul | Relu | Exp | Tanh => 1,
            AddScaled | Clamp | Scale => 2,
            Softplus | Softcap | Sigmoid => 3,
            Silu | GeluErf => 4,
            SiluMul | GeluErfMul => 5,
            GeluTanh => 8,
            GeluTanhMul => 9,
        }
    }

    /// True where the result is rounded once, so that nothing but the output's own rounding may differ.
    fn rounds_once(self) -> bool {
        use Function::*;
        matches!(self, Add | Mul | Relu | Clamp)
    }
}

impl Elementwise {
    /// The function's value, and what errors are relative to. An f32 kernel rounds the argument of an exponential,
    /// which then amplifies it by that argument; `1 + tanh` and `1 + erf` cancel below zero; a sum rounds its terms.
    fn apply(&self, a: f64, b: f64) -> (f64, f64) {
        use Function::*;
        let (alpha, beta) = (self.alpha.f64(), self.beta.f64());
        // What an argument's rounding costs a function that falls like exp(a) below zero.
        let decay = 1.0 + a.abs() / (1.0 + a.exp());
        let value = match self.function {
            Add => a + b,
            Mul => a * b,
            AddScaled => a + alpha * b,
            SiluMul => Activation::Silu.apply(a) * b,
            GeluTanhMul => Activation::GeluTanh.apply(a) * b,
            GeluErfMul => Activation::GeluErf.apply(a) * b,
            Silu => Activation::Silu.apply(a),
            GeluTanh => Activation::GeluTanh.apply(a),
            GeluErf => Activation::GeluErf.apply(a),
            Relu => Activation::Relu.apply(a),
            Softplus if a.is_nan() => a, // max(NaN, 0) is 0
            Softplus => math::softplus(a),
            Sigmoid => 1.0 / (1.0 + (-a).exp()),
            Tanh => a.tanh(),
            Softcap => alpha * (a / alpha).tanh(),
            Clamp if a.is_nan() => a,
            Clamp => a.max(alpha).min(beta),
            Scale => alpha * a + beta,
            Exp => a.exp(),
        };
        let magnitude = match self.function {
            AddScaled => a.abs() + (alpha * b).abs(),
            Scale => (alpha * a).abs() + beta.abs(),
            GeluTanh | GeluErf => a.abs(),
            GeluTanhMul | GeluErfMul => (a * b).abs(),
            Silu | SiluMul | Sigmoid | Softplus => value.abs() * decay,
            Exp => value.abs() * (1.0 + a.abs()),
            _ => value.abs(),
        };
        // exp(-a) in f32 overflows, or its reciprocal is flushed to zero, where the true value is just above the range.
        let flushed = f32::MIN_POSITIVE as f64 / f32::EPSILON as f64 * (1.0 + a.abs()) * (1.0 + b.abs());
        (value, if magnitude.is_nan() { value.abs() } else { magnitude + flushed })
    }
}

impl Semantics for Elementwise {
    fn check(&self) -> Result<(), String> {
        let f = self.function;
        ensure!(f.takes_b() == self.b.is_some(), "{f} takes {}", if f.takes_b() { "a and b" } else { "a only" });
        for o in &self.operands() {
            one_of(o.name, o.spec.dtype(), &[DType::F32, DType::F16, DType::BF16])?;
            let fits = o.spec.broadcast(self.out.shape()).is_ok();
            ensure!(fits, "{} does not broadcast to out's {:?}", o.name, self.out.shape());
        }
        let (alpha, beta) = (self.alpha.get(), self.beta.get());
        ensure!(alpha.is_finite() && beta.is_finite(), "alpha and beta must be finite");
        ensure!(f.takes_alpha() || self.alpha == Real::ONE, "{f} has no alpha");
        ensure!(f.takes_beta() || self.beta == Real::ZERO, "{f} has no beta");
        ensure!(f != Function::Softcap || alpha > 0.0, "the cap alpha must be above 0");
        ensure!(f != Function::Clamp || alpha <= beta, "clamp's alpha must not exceed beta");
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        let repeats = |s: &Spec| {
            s.shape() != self.out.shape() || s.shape().iter().zip(s.strides()).any(|(&n, &stride)| n > 1 && stride == 0)
        };
        f.set(Features::BROADCAST, repeats(&self.a) || self.b.as_ref().is_some_and(repeats));
        f
    }

    fn flops(&self) -> u64 {
        (self.out.numel() as u64).saturating_mul(self.function.flops())
    }

    fn reference(&self, arrays: &mut Arrays) {
        let a = arrays.of("a").expand(self.out.shape());
        let b = arrays.get("b").map(|b| b.expand(self.out.shape()));
        let at = |i: usize| self.apply(a[i], b.as_ref().map_or(0.0, |b| b[i]));
        let (data, magnitude) = (0..a.len()).map(at).unzip();
        arrays.set_with("out", data, magnitude);
    }

    fn bound(&self, _output: &str) -> Bound {
        // A handful of f32 operations, each within a few units in the last place.
        Bound::relative(if self.function.rounds_once() { 0.0 } else { 8.0 * f32::EPSILON as f64 })
    }

    fn may_alias(&self, out: &str, input: &str) -> bool {
        out == "out" && matches!(input, "a" | "b")
    }

    fn class(&self) -> Self {
        let build = || -> crate::Result<Self> {
            let b = self.b.as_ref().map(class_spec).transpose()?;
            Ok(Elementwise { a: class_spec(&self.a)?, out: class_spec(&self.out)?, b, ..*self })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let of = |function: Function, d, shape: &[usize]| {
            let s = spec(d, shape);
            let b = function.takes_b().then_some(s);
            let (alpha, beta) = match function {
                Function::AddScaled => (0.22, 0.0),
                Function::Softcap => (30.0, 0.0),
                Function::Clamp => (-0.5, 0.75),
                Function::Scale => (-1.5, 0.25),
                _ => (1.0, 0.0),
            };
            Elementwise { function, b, alpha: alpha.into(), beta: beta.into(), ..Elementwise::new(s, s) }
        };
        let mut all = Vec::new();
        for &function in Function::ALL {
            all.extend([of(function, F32, &[3, 67]), of(function, F16, &[130]), of(function, BF16, &[2, 33])]);
        }
        for shape in [&[1][..], &[0], &[4, 0], &[0, 5], &[15], &[16], &[17], &[2, 3, 5], &[1031]] {
            all.extend([of(Function::Mul, F32, shape), of(Function::Silu, F32, shape)]);
        }
        let add = of(Function::Add, F32, &[4, 5, 18]);
        // broadcasts: a row, a column, a scalar, both operands, a lower rank, a stride of 0
        for b in [&[18][..], &[5, 1], &[1], &[4, 1, 18], &[1, 1, 1]] {
            all.push(Elementwise { b: Some(spec(F32, b)), ..add });
        }
        all.push(Elementwise { a: spec(F32, &[5, 1]), b: Some(spec(F32, &[18])), ..add });
        all.push(Elementwise { a: spec(F16, &[18]), b: Some(strided(BF16, &[4, 5, 18], &[0, 18, 1])), ..add });
        // layouts: rows with gaps, permuted, every other element; mixed dtypes
        all.push(Elementwise { a: strided(F32, &[4, 5, 18], &[1000, 20, 1]), ..add });
        let out = strided(F32, &[4, 5, 18], &[1, 4, 20]);
        all.push(Elementwise { a: strided(F32, &[4, 5, 18], &[18, 72, 1]), out, ..add });
        all.push(Elementwise { a: strided(F32, &[4, 5, 18], &[200, 38, 2]), b: Some(spec(F16, &[4, 5, 18])), ..add });
        all.push(Elementwise { out: spec(F16, &[3, 67]), ..of(Function::GeluErf, F32, &[3, 67]) });
        all.push(Elementwise { out: spec(F32, &[3, 67]), ..of(Function::SiluMul, BF16, &[3, 67]) });
        all.push(Elementwise { determinism: Determinism::BatchInvariant, ..of(Function::Tanh, F32, &[7, 9]) });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    fn unary(text: &str, values: &[f64]) -> Vec<f64> {
        let op: Op = format!("elementwise a=f32:{n} out=f32:{n} {text}", n = values.len()).parse().unwrap();
        compute(op, &[("a", values)]).of("out").data.clone()
    }

    #[test]
    fn cases_keep_their_promises() {
        check_cases::<Elementwise>();
    }

    #[test]
    fn nan_stays_and_ends_of_the_range_are_finite() {
        const NAN: f64 = f64::NAN;
        const INF: f64 = f64::INFINITY;
        for &f in Function::ALL.iter().filter(|f| !f.takes_b()) {
            let beta = if f == Function::Clamp { " beta=2.0" } else { "" };
            assert!(unary(&format!("function={f}{beta}"), &[NAN])[0].is_nan(), "{f}");
        }
        for f in ["silu", "gelu-tanh", "gelu-erf"] {
            let y = unary(&format!("function={f}"), &[-INF, INF, 0.0]);
            assert!(y[0] == 0.0 && y[0].is_sign_negative(), "{f}");
            assert_eq!(y[1..], [INF, 0.0], "{f}");
        }
        assert_eq!(unary("function=softplus", &[-INF, 1000.0, INF]), [0.0, 1000.0, INF]);
        assert_eq!(unary("function=sigmoid", &[-INF, 0.0, INF]), [0.0, 0.5, 1.0]);
        assert_eq!(unary("function=relu", &[-INF, -1.0, 2.0]), [0.0, 0.0, 2.0]);
        assert_eq!(unary("function=clamp alpha=-1.0 beta=2.0", &[-INF, 0.5, INF]), [-1.0, 0.5, 2.0]);
        assert_eq!(unary("function=softcap alpha=30.0", &[-INF, 0.0, INF]), [-30.0, 0.0, 30.0]);
        assert_eq!(unary("alpha=3.0 beta=1.0", &[2.0]), [7.0]);
    }

    #[test]
    fn operands_broadcast() {
        let op: Op = "elementwise a=f32:2x1 out=f32:2x3 b=f32:3 function=add-scaled alpha=10.0".parse().unwrap();
        let arrays = compute(op, &[("a", &[1.0, 2.0]), ("b", &[3.0, 4.0, 5.0])]);
        assert_eq!(arrays.of("out").data, [31.0, 41.0, 51.0, 32.0, 42.0, 52.0]);
        assert_eq!(op.features(), Features::BROADCAST);
    }

    #[test]
    fn rules() {
        for wrong in [
            "a=f32:3 out=f32:3 function=add",
            "a=f32:3 out=f32:3 b=f32:3 function=silu",
            "a=f32:4 out=f32:3",
            "a=f32:2x3 out=f32:3",
            "a=i32:3 out=f32:3",
            "a=f32:3 out=i8:3",
            "a=f32:3 out=f32:3 function=softcap alpha=0.0",
            "a=f32:3 out=f32:3 function=clamp alpha=2.0 beta=1.0",
            "a=f32:3 out=f32:3 function=silu alpha=2.0",
            "a=f32:3 out=f32:3 function=softcap alpha=2.0 beta=1.0",
            "a=f32:3 out=f32:3@0",
        ] {
            assert!(format!("elementwise {wrong}").parse::<Op>().unwrap().validate().is_err(), "{wrong}");
        }
    }
}
