//! Softmax over the last dimension.
//!
//! `out = exp(scale * x + mask - max) / sum`, computed in f32 with the maximum taken out; `log`: its natural
//! logarithm. A row of -inf only (fully masked) gives zeros (with `log`: -inf); a row with NaN or +inf gives NaN
//! throughout. Rows of zero elements write nothing. `out` may be `x`.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out = softmax(scale * x + mask)` per row: see the [module](self).
    Softmax = "softmax";
    operands {
        /// `[.., n]`
        x: In,
        /// `[.., n]`
        out: Out,
    }
    optional {
        /// Added; broadcasts to `x`.
        mask: In,
    }
    fields {
        /// Multiplies x.
        scale: Real = Real::ONE,
        /// Returns the logarithm.
        log: bool = false,
    }
}

/// The softmax of a row, or its logarithm, and what errors are relative to. `error[i]` is what the rounding errors of
/// `row[i]` are relative to; an exponential turns an argument's error into a relative one of its own size.
pub(super) fn softmax_row(row: &[f64], error: &[f64], log: bool) -> (Vec<f64>, Vec<f64>) {
    if row.iter().any(|&v| v.is_nan() || v == f64::INFINITY) {
        return (vec![f64::NAN; row.len()], vec![0.0; row.len()]);
    }
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        let nothing = if log { f64::NEG_INFINITY } else { 0.0 };
        return (vec![nothing; row.len()], vec![1.0; row.len()]);
    }
    let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
    let own = |i: usize| if row[i].is_finite() { error[i] + max - row[i] } else { 0.0 };
    // The sum's error is the mean of its terms', weighted as they are.
    let shared: f64 = (0..row.len()).map(|i| (row[i] - max).exp() / sum * own(i)).sum();
    let at = |i: usize| {
        let slack = 1.0 + own(i) + shared;
        if log {
            let value = row[i] - max - sum.ln();
            (value, if value.is_finite() { value.abs() + slack } else { 1.0 })
        } else {
            let value = (row[i] - max).exp() / sum;
            (value, value * slack)
        }
    };
    (0..row.len()).map(at).unzip()
}

impl Semantics for Softmax {
    fn check(&self) -> Result<(), String> {
        let (x, out) = (&self.x, &self.out);
        for o in &self.operands() {
            ensure!(o.spec.dtype().is_float(), "{} is {}, must be f32, f16 or bf16", o.name, o.spec.dtype());
        }
        ensure!(x.shape() == out.shape(), "out is {:?}, must be x's {:?}", out.shape(), x.shape());
        let fits = self.mask.is_none_or(|m| m.broadcast(x.shape()).is_ok());
        ensure!(fits, "mask does not broadcast to x's {:?}", x.shape());
        ensure!(self.scale.get().is_finite(), "scale must be finite");
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::SCALE, self.scale != Real::ONE);
        f.set(Features::MASK, self.mask.is_some());
        f.set(Features::BROADCAST, self.mask.is_some_and(|m| m.shape() != self.x.shape()));
        f
    }

    fn flops(&self) -> u64 {
        (self.x.numel() as u64).saturating_mul(if self.mask.is_some() { 6 } else { 5 })
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (x, n) = (arrays.of("x"), self.x.dim(0));
        let mask = arrays.get("mask").map(|m| m.expand(self.x.shape()));
        let (mut data, mut magnitude) = (Vec::new(), Vec::new());
        for r in 0..if n == 0 { 0 } else { self.x.rows() } {
            let scaled = x.row(r).iter().map(|v| v * self.scale.f64());
            let term = |i: usize| mask.as_ref().map_or(0.0, |m| m[r * n + i]);
            let (row, error): (Vec<f64>, Vec<f64>) =
                scaled.enumerate().map(|(i, v)| (v + term(i), v.abs() + term(i).abs())).unzip();
            let (values, errors) = softmax_row(&row, &error, self.log);
            data.extend(values);
            magnitude.extend(errors);
        }
        arrays.set_with("out", data, magnitude);
    }

    fn bound(&self, _output: &str) -> Bound {
        Bound::dot(self.x.dim(0))
    }

    fn may_alias(&self, out: &str, input: &str) -> bool {
        out == "out" && input == "x"
    }

    fn class(&self) -> Self {
        let build = || -> crate::Result<Self> {
            let mask = self.mask.as_ref().map(class_spec).transpose()?;
            Ok(Softmax { x: class_spec(&self.x)?, out: class_spec(&self.out)?, mask, ..*self })
        };
        build().unwrap_or(*self)
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        // Masks hide elements, and now and then a whole row.
        let hide = |rng: &mut Rng, whole: bool| whole || rng.below(4) == 0;
        (operand.name == "mask").then(|| {
            let (rows, n) = (operand.spec.rows(), operand.spec.dim(0));
            let mut values = Vec::new();
            for _ in 0..if n == 0 { 0 } else { rows } {
                let whole = rng.below(6) == 0;
                values.extend((0..n).map(|_| if hide(rng, whole) { f64::NEG_INFINITY } else { rng.value(fill) }));
            }
            values
        })
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let of = |d, s: &[usize]| Softmax::new(spec(d, s), spec(d, s));
        let mut all = Vec::new();
        for shape in [
            &[1][..], &[0], &[0, 7], &[3, 0], &[5, 1], &[4, 2], &[3, 15], &[3, 16], &[3, 17], &[2, 63], &[65],
            &[2, 3, 31], &[2, 257], &[1031], &[1, 4099],
        ] {
            all.push(of(F32, shape));
        }
        for d in [F16, BF16] {
            all.extend([of(d, &[3, 40]), Softmax { out: spec(F32, &[5, 33]), ..of(d, &[5, 33]) }]);
        }
        let base = of(F32, &[2, 3, 5, 19]);
        for mask in [&[2, 3, 5, 19][..], &[5, 19], &[19], &[2, 1, 1, 19], &[2, 1, 5, 19], &[5, 1], &[1]] {
            all.push(Softmax { mask: Some(spec(F32, mask)), scale: 0.125.into(), ..base });
        }
        all.push(Softmax { mask: Some(spec(F16, &[5, 19])), log: true, ..base });
        all.push(Softmax { mask: Some(strided(F32, &[3, 5, 19], &[0, 19, 1])), ..base });
        all.extend([Softmax { log: true, ..of(F32, &[4, 37]) }, Softmax { log: true, ..of(BF16, &[4, 37]) }]);
        all.push(Softmax { log: true, scale: (-2.0).into(), ..of(F32, &[300]) });
        all.push(Softmax { x: strided(F32, &[4, 37], &[100, 1]), ..of(F32, &[4, 37]) });
        all.push(Softmax { x: strided(F32, &[4, 37], &[1, 4]), ..of(F32, &[4, 37]) });
        all.push(Softmax { out: strided(F32, &[4, 37], &[80, 2]), ..of(F32, &[4, 37]) });
        all.push(Softmax { x: strided(F32, &[4, 37], &[0, 1]), ..of(F32, &[4, 37]) });
        all.push(Softmax { determinism: Determinism::BatchInvariant, ..of(F32, &[9, 70]) });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    const INF: f64 = f64::INFINITY;

    fn row(values: &[f64], log: bool) -> Vec<f64> {
        let x = spec(DType::F32, &[values.len()]);
        compute(Softmax { log, ..Softmax::new(x, x) }, &[("x", values)]).of("out").data.clone()
    }

    #[test]
    fn cases_hold() {
        check_cases::<Softmax>();
    }

    #[test]
    fn corners() {
        assert_close(&row(&[0.0, 2f64.ln(), -INF], false), &[1.0 / 3.0, 2.0 / 3.0, 0.0]);
        assert_close(&row(&[0.0, 2f64.ln(), -INF], true), &[-(3f64.ln()), (2.0 / 3.0f64).ln(), -INF]);
        assert_close(&row(&[1e30, 1e30], false), &[0.5, 0.5]);
        assert_eq!(row(&[-INF, -INF], false), [0.0, 0.0], "fully masked");
        assert_eq!(row(&[-INF, -INF], true), [-INF, -INF], "fully masked");
        for log in [false, true] {
            assert!(row(&[1.0, f64::NAN, -INF], log).iter().all(|v| v.is_nan()));
            assert!(row(&[1.0, INF, -INF], log).iter().all(|v| v.is_nan()));
        }
        assert_eq!(row(&[], false), [0.0; 0]);
    }

    #[test]
    fn masks_and_scale() {
        let x = spec(DType::F32, &[2, 2]);
        let op = Softmax { mask: Some(spec(DType::F32, &[2, 1])), scale: 0.5.into(), ..Softmax::new(x, x) };
        let got = compute(op, &[("x", &[0.0, 4f64.ln(), 1.0, 2.0]), ("mask", &[7.0, -INF])]);
        assert_close(&got.of("out").data, &[1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        assert_eq!(Op::from(op).features(), Features::SCALE | Features::MASK | Features::BROADCAST);
    }

    #[test]
    fn refusals() {
        let x = spec(DType::F32, &[2, 3]);
        assert_refused(Softmax::new(x, spec(DType::F32, &[3, 2])), "out");
        assert_refused(Softmax::new(x, spec(DType::I32, &[2, 3])), "out");
        assert_refused(Softmax { mask: Some(spec(DType::F32, &[2])), ..Softmax::new(x, x) }, "mask");
        assert_refused(Softmax { scale: f32::NAN.into(), ..Softmax::new(x, x) }, "scale");
    }
}
