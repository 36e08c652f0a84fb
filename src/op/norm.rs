//! RMS norm and layer norm over the last dimension, with what comes before and after them in one pass.
//!
//! In this order: `s = x`, or `residual + factor * x`, written to `sum` where present (what follows goes on with the
//! unrounded value); `s *= silu(gate)`;
//! rms: `y = s / sqrt(mean(s^2) + eps)`; layer: `y = (s - mean(s)) / sqrt(var(s) + eps)` (variance over n);
//! `out = y * weight + bias`.
//!
//! - `out` may be q8_0, q8_1, q8_k, q5_0, q5_1, q4_0 or q4_1, formats whose blocks follow from their numbers by rounding: encoded from the
//!   unrounded results, as `convert` encodes.
//! - Sums are in f32 or better, whatever the dtypes. Rows are independent; zero rows are legal, and so is a row of zero
//!   elements (nothing is written). A row of zeros gives `bias` (or zeros); with `eps = 0` it gives NaN, as 0/0 does.
//! - NaN or infinity in a row spoils that row alone.
//! - `sum` may be `residual` or `x`; `out` may be `x`.

use super::{
    encoded::{ROUNDED, encoded_bound, encoded_magnitudes},
    *,
};
use crate::{dtype::DType, layout::Spec};

words! {
    /// Which norm.
    NormKind {
        /// Root mean square, no centring.
        Rms = "rms",
        /// Mean and variance.
        Layer = "layer",
    }
}

descriptor! {
    /// `out = norm(residual + factor * x) * weight + bias`: see the [module](self).
    Norm = "norm";
    operands {
        /// `[.., n]`
        x: In,
        /// `[.., n]`
        out: Out,
    }
    optional {
        /// `[n]`
        weight: In,
        /// `[n]`
        bias: In,
        /// `[.., n]`
        residual: In,
        /// `[.., n]`
        gate: In,
        /// `[.., n]`: what was normalized, for the next residual.
        sum: Out,
    }
    fields {
        /// Rms or layer.
        kind: NormKind = NormKind::Rms,
        /// Added to the mean square or the variance.
        eps: Real = Real::new(1e-5),
        /// Multiplies `x` before the residual is added; 1 where there is none.
        factor: Real = Real::ONE,
    }
}

impl Norm {
    /// `(rows, n)`
    pub fn dims(&self) -> (usize, usize) {
        (self.x.rows(), self.x.dim(0))
    }
}

impl Semantics for Norm {
    fn check(&self) -> Result<(), String> {
        let (_, n) = self.dims();
        for o in &self.operands() {
            let blocks = o.name == "out" && ROUNDED.contains(&o.spec.dtype());
            ensure!(blocks || o.spec.dtype().is_float(), "{} is {}, must be f32, f16 or bf16", o.name, o.spec.dtype());
            let want: &[usize] = if matches!(o.name, "weight" | "bias") { &[n] } else { self.x.shape() };
            ensure!(o.spec.shape() == want, "{} is {:?}, must be {want:?}", o.name, o.spec.shape());
        }
        ensure!(self.eps.get().is_finite() && self.eps.get() >= 0.0, "eps must be finite and not negative");
        ensure!(self.factor.get().is_finite(), "factor must be finite");
        ensure!(self.residual.is_some() || self.factor == Real::ONE, "factor needs a residual");
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::BIAS, self.bias.is_some());
        f.set(Features::RESIDUAL, self.residual.is_some());
        f.set(Features::SCALE, self.factor != Real::ONE);
        f.set(Features::GATE, self.gate.is_some());
        f.set(Features::SUM, self.sum.is_some());
        f
    }

    fn flops(&self) -> u64 {
        let optional = |o: Option<Spec>, cost: u64| if o.is_some() { cost } else { 0 };
        let kind = if self.kind == NormKind::Rms { 3 } else { 6 };
        let parts = [optional(self.weight, 1), optional(self.bias, 1), optional(self.residual, 2), optional(self.gate, 5)];
        (self.x.numel() as u64).saturating_mul(kind + parts.iter().sum::<u64>())
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (rows, n) = self.dims();
        let (x, get) = (arrays.of("x"), |name: &str| arrays.get(name));
        let (weight, bias, residual, gate) = (get("weight"), get("bias"), get("residual"), get("gate"));
        let (mut sum, mut sum_mag) = (x.data.clone(), x.data.iter().map(|v| v.abs()).collect::<Vec<_>>());
        if let Some(r) = residual {
            for ((s, m), r) in sum.iter_mut().zip(&mut sum_mag).zip(&r.data) {
                *s = r + self.factor.f64() * *s;
                *m = r.abs() + self.factor.f64().abs() * *m;
            }
        }
        let (mut out, mut out_mag) = (sum.clone(), sum_mag.clone());
        for row in 0..rows {
            let range = row * n..(row + 1) * n;
            let (s, mag) = (&mut out[range.clone()], &mut out_mag[range.clone()]);
            if let Some(gate) = gate {
                for ((s, m), &g) in s.iter_mut().zip(mag.iter_mut()).zip(&gate.data[range]) {
                    let silu = Activation::Silu.apply(g);
                    *s *= silu;
                    *m *= silu.abs() * if g.is_finite() { 1.0 + g.abs() } else { 1.0 }; // exp's condition number is |g|
                }
            }
            let mean = |v: &[f64], f: fn(f64) -> f64| v.iter().map(|&v| f(v)).sum::<f64>() / n as f64;
            if self.kind == NormKind::Layer {
                // An element's error is its own and the mean's.
                let (centre, centre_mag) = (mean(s, |v| v), mean(mag, |v| v));
                s.iter_mut().for_each(|v| *v -= centre);
                mag.iter_mut().for_each(|m| *m += centre_mag);
            }
            let inverse = 1.0 / (mean(s, |v| v * v) + self.eps.f64()).sqrt();
            // Errors of the elements move the divisor by at most their root mean square.
            let spread = mean(mag, |v| v * v).sqrt() * inverse;
            for (j, (s, m)) in s.iter_mut().zip(mag).enumerate() {
                let (w, b) = (weight.map_or(1.0, |w| w.data[j]), bias.map_or(0.0, |b| b.data[j]));
                *m = (*m + if *s == 0.0 { 0.0 } else { s.abs() * spread }) * inverse * w.abs() + b.abs();
                *s = *s * inverse * w + b;
            }
        }
        encoded_magnitudes(self.out.dtype(), &out, &mut out_mag);
        arrays.set_with("out", out, out_mag);
        if self.sum.is_some() {
            arrays.set_with("sum", sum, sum_mag);
        }
    }

    fn bound(&self, output: &str) -> Bound {
        let eps = f32::EPSILON as f64;
        match output {
            "sum" if self.residual.is_none() => Bound::relative(0.0),
            "sum" => Bound::relative(2.0 * eps),
            // The sums, and a rounding for each step after them.
            _ => encoded_bound(self.out.dtype(), Bound::dot(self.dims().1).relative + 8.0 * eps),
        }
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        // A block that holds NaN or an infinity has no defined code.
        let open = self.out.dtype().is_quantized() && fill == Fill::Special;
        open.then(|| (0..operand.spec.numel()).map(|_| rng.value(Fill::Normal)).collect())
    }

    fn may_alias(&self, out: &str, input: &str) -> bool {
        matches!((out, input), ("sum", "residual" | "x") | ("out", "x"))
    }

    fn class(&self) -> Self {
        let (rows, n) = self.dims();
        let wide = |s: &Spec| Spec::new(s.dtype(), &[class_rows(rows), n]);
        let build = || -> crate::Result<Self> {
            Ok(Norm {
                x: wide(&self.x)?,
                out: wide(&self.out)?,
                weight: self.weight.map(|s| s.dense()),
                bias: self.bias.map(|s| s.dense()),
                residual: self.residual.as_ref().map(wide).transpose()?,
                gate: self.gate.as_ref().map(wide).transpose()?,
                sum: self.sum.as_ref().map(wide).transpose()?,
                ..*self
            })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |s: &[usize], t: &[usize]| Spec::strided(F32, s, t).expect("a case's spec");
        let plain = |x, out, s: &[usize]| Norm::new(spec(x, s), spec(out, s));
        let mut all = Vec::new();
        for kind in [NormKind::Rms, NormKind::Layer] {
            for shape in [[0, 8], [3, 0], [1, 1], [5, 7], [1, 64], [3, 129], [2, 768], [33, 31], [4, 1537]] {
                all.push(Norm { kind, ..plain(F32, F32, &shape) });
            }
            all.push(Norm { kind, ..plain(F32, F32, &[2, 3, 40]) });
            all.push(Norm { kind, ..plain(F32, F32, &[50]) });
            for (x, out) in [(F16, F16), (BF16, BF16), (BF16, F32), (F32, F16)] {
                let weight = Some(spec(if x == F32 { F32 } else { x }, &[96]));
                all.push(Norm { kind, weight, ..plain(x, out, &[3, 96]) });
            }
            // options, each alone and together
            let base = Norm { kind, ..plain(F32, F32, &[5, 72]) };
            let (row, wide) = (Some(spec(F32, &[72])), Some(spec(F32, &[5, 72])));
            all.push(Norm { weight: row, eps: Real::new(1e-12), ..base });
            all.push(Norm { bias: row, ..base });
            all.push(Norm { residual: wide, ..base });
            all.push(Norm { residual: wide, factor: Real::new(0.22), ..base });
            all.push(Norm { gate: wide, ..base });
            all.push(Norm { sum: wide, ..base });
            let full = Norm { weight: row, bias: row, residual: wide, gate: wide, sum: wide, ..base };
            all.push(Norm { factor: Real::new(-1.5), ..full });
            let half = Some(spec(BF16, &[5, 72]));
            all.push(Norm { sum: half, residual: half, weight: row, ..base });
            // layouts: rows with gaps, every second element, one row for all
            let x = strided(&[5, 72], &[100, 1]);
            all.push(Norm { x, out: x, residual: Some(strided(&[5, 72], &[0, 1])), weight: row, ..base });
            let second = strided(&[5, 72], &[160, 2]);
            all.push(Norm { x: second, out: second, weight: Some(strided(&[72], &[3])), ..base });
            let x = strided(&[2, 3, 40], &[40, 80, 1]);
            all.push(Norm { x, kind, ..plain(F32, F32, &[2, 3, 40]) });
            all.push(Norm { determinism: Determinism::BatchInvariant, weight: row, ..base });
        }
        all.push(Norm { eps: Real::ZERO, ..plain(F32, F32, &[3, 64]) });
        for &blocks in ROUNDED {
            all.push(Norm { weight: Some(spec(F32, &[768])), ..plain(F32, blocks, &[3, 768]) });
        }
        let (row, wide) = (Some(spec(F32, &[96])), Some(spec(F32, &[5, 96])));
        for blocks in [Q8_0, Q4_0] {
            let base = plain(F32, blocks, &[5, 96]);
            all.push(Norm { weight: row, residual: wide, factor: Real::new(0.22), sum: wide, ..base });
            all.push(Norm { kind: NormKind::Layer, weight: row, bias: row, gate: wide, sum: wide, ..base });
            all.push(Norm { x: spec(BF16, &[5, 96]), weight: Some(spec(BF16, &[96])), ..base });
            all.push(Norm { out: Spec::strided(blocks, &[5, 96], &[160, 1]).expect("a case's spec"), ..base });
        }
        all.extend([plain(F32, Q8_0, &[0, 32]), plain(F16, Q8_0, &[2, 3, 2080])]);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn plain(kind: NormKind, shape: &[usize]) -> Norm {
        Norm { kind, eps: Real::ZERO, ..Norm::new(spec(DType::F32, shape), spec(DType::F32, shape)) }
    }

    #[test]
    fn cases_hold() {
        check_cases::<Norm>();
    }

    #[test]
    fn known_values() {
        let rms = compute(plain(NormKind::Rms, &[1, 2]), &[("x", &[3.0, 4.0])]);
        let root = 12.5f64.sqrt();
        assert_close(&rms.of("out").data, &[3.0 / root, 4.0 / root]);
        let layer = compute(plain(NormKind::Layer, &[1, 4]), &[("x", &[1.0, 2.0, 3.0, 4.0])]);
        let d = 1.25f64.sqrt();
        assert_close(&layer.of("out").data, &[-1.5 / d, -0.5 / d, 0.5 / d, 1.5 / d]);
    }

    #[test]
    fn order_of_the_steps() {
        let s = spec(DType::F32, &[1, 2]);
        let row = Some(spec(DType::F32, &[2]));
        let op = Norm { residual: Some(s), gate: Some(s), sum: Some(s), weight: row, bias: row, factor: 2.0.into(), ..plain(NormKind::Rms, &[1, 2]) };
        let given: &[(&str, &[f64])] = &[
            ("x", &[1.0, -1.0]), ("residual", &[0.5, 4.0]), ("gate", &[1.0, 2.0]), ("weight", &[3.0, 5.0]), ("bias", &[7.0, 9.0]),
        ];
        let got = compute(op, given);
        assert_close(&got.of("sum").data, &[2.5, 2.0]);
        let gated = [2.5 * Activation::Silu.apply(1.0), 2.0 * Activation::Silu.apply(2.0)];
        let root = ((gated[0] * gated[0] + gated[1] * gated[1]) / 2.0).sqrt();
        assert_close(&got.of("out").data, &[gated[0] / root * 3.0 + 7.0, gated[1] / root * 5.0 + 9.0]);
    }

    #[test]
    fn zero_rows_and_special_rows() {
        for kind in [NormKind::Rms, NormKind::Layer] {
            let zero = Norm { eps: Real::new(1e-5), bias: Some(spec(DType::F32, &[2])), ..plain(kind, &[1, 2]) };
            assert_close(&compute(zero, &[("bias", &[1.0, -2.0])]).of("out").data, &[1.0, -2.0]);
            assert!(compute(plain(kind, &[1, 2]), &[]).of("out").data.iter().all(|v| v.is_nan()), "0/0");
            assert!(compute(plain(kind, &[3, 0]), &[]).of("out").data.is_empty());
            let x = [1.0, 2.0, f64::NAN, 2.0, f64::INFINITY, 1.0, 1.0, 2.0];
            let rows = compute(plain(kind, &[4, 2]), &[("x", &x)]).of("out").data.clone();
            assert!(rows[2].is_nan() && rows[4].is_nan());
            assert_eq!(rows[..2], rows[6..], "the other rows are untouched");
            assert!(rows[0].is_finite());
        }
    }

    #[test]
    fn refusals() {
        let op = plain(NormKind::Rms, &[2, 4]);
        assert_refused(Norm { out: spec(DType::F32, &[2, 5]), ..op }, "out is");
        assert_refused(Norm { weight: Some(spec(DType::F32, &[2])), ..op }, "weight is");
        assert_refused(Norm { x: spec(DType::I8, &[2, 4]), ..op }, "x is i8");
        let blocks = plain(NormKind::Rms, &[2, 256]);
        assert_refused(Norm { out: spec(DType::Q4_K, &[2, 256]), ..blocks }, "out is q4_k");
        assert_refused(Norm { sum: Some(spec(DType::Q8_0, &[2, 256])), ..blocks }, "sum is q8_0");
        assert_refused(Norm { factor: 2.0.into(), ..op }, "needs a residual");
        assert_refused(Norm { eps: Real::new(-1.0), ..op }, "eps");
        assert_refused(Norm { eps: Real::new(f32::NAN), ..op }, "eps");
    }
}
