//! One number per row, or a row divided by its norm.
//!
//! Reduces the last dimension: `x [.., n]` to `out [.., 1]` (`l2-normalize`: `[.., n]`). Any other dimension is reduced
//! by giving strides that put it last: mean pooling of `[batch, t, d]` over tokens is `x` as `[batch, d, t]`.
//!
//! - `sum`, `mean`, `log-sum-exp`, `l2-normalize` accumulate in f32 or better. `max` and `arg-max` are exact: NaN beats
//!   every number, the first of equals wins. The sign of a zero that `max` gives is open. `arg-max` gives i32.
//! - Empty rows: sum 0, mean 0, max and log-sum-exp -inf, arg-max -1. `log-sum-exp` of a row with +inf is +inf (NaN with a
//!   NaN in it).
//! - `mask` (u8, broadcasts to `x`; 0 hides) is honoured by all kinds but l2-normalize, which refuses it; a fully masked
//!   row is an empty row. So `mean` with a mask is masked mean pooling.
//! - `l2-normalize`: `x / max(|x|, eps)`, NaN throughout for a row with NaN. `eps` is at least 1e-15, so that no norm above
//!   it is lost to underflow of the squares in f32. `out` may be `x`.

use super::*;
use crate::{dtype::DType, layout::Spec};

words! {
    /// What is computed of a row.
    Reduction {
        /// Sum.
        Sum = "sum",
        /// Sum over count.
        Mean = "mean",
        /// Largest element.
        Max = "max",
        /// Index of the largest element, the first of equals.
        ArgMax = "arg-max",
        /// ln(sum(exp(x)))
        LogSumExp = "log-sum-exp",
        /// x / max(|x|, eps)
        L2Normalize = "l2-normalize",
    }
}

descriptor! {
    /// `out[.., 0] = kind(x[.., :])`: see the [module](self).
    Reduce = "reduce";
    operands {
        /// `[.., n]`
        x: In,
        /// `[.., 1]`, or `[.., n]` for l2-normalize; i32 for arg-max.
        out: Out,
    }
    optional {
        /// u8, broadcasts to `x`.
        mask: In,
    }
    fields {
        /// What to compute.
        kind: Reduction = Reduction::Sum,
        /// Lower limit of the norm in l2-normalize.
        eps: Real = Real::new(1e-12),
    }
}

impl Reduction {
    fn picks(self) -> bool {
        matches!(self, Reduction::Max | Reduction::ArgMax)
    }
}

/// Where the largest element stands: NaN beats every number, the first of equals wins.
pub(super) fn arg_max(row: impl Iterator<Item = f64>) -> Option<usize> {
    let beats = |v: f64, best: f64| v > best || (v.is_nan() && !best.is_nan());
    let best = row.enumerate().reduce(|best, next| if beats(next.1, best.1) { next } else { best });
    best.map(|(i, _)| i)
}

impl Reduce {
    /// The result for the visible elements of a row, and what errors are relative to.
    fn of_row(&self, x: &[(usize, f64)]) -> (f64, f64) {
        let sum = |f: &dyn Fn(f64) -> f64| x.iter().map(|&(_, v)| f(v)).sum::<f64>();
        let best = arg_max(x.iter().map(|e| e.1)).map(|i| x[i]);
        let max = best.map_or(f64::NEG_INFINITY, |b| b.1);
        match self.kind {
            Reduction::Sum => (sum(&|v| v), sum(&f64::abs)),
            Reduction::Mean => {
                let count = x.len().max(1) as f64;
                (sum(&|v| v) / count, sum(&f64::abs) / count)
            }
            Reduction::Max => (max, max.abs()),
            Reduction::ArgMax => (best.map_or(-1.0, |b| b.0 as f64), 0.0),
            Reduction::LogSumExp if max.is_finite() => {
                let total = sum(&|v| (v - max).exp());
                // An exponential turns its argument's error into a relative one of its own.
                let arguments = sum(&|v| if v.is_finite() { (v - max).exp() / total * (max - v) } else { 0.0 });
                let value = max + total.ln();
                (value, 1.0 + max.abs() + value.abs() + arguments)
            }
            Reduction::LogSumExp => (max, 0.0),
            Reduction::L2Normalize => {
                let norm = sum(&|v| v * v).sqrt();
                (if norm < self.eps.f64() { self.eps.f64() } else { norm }, 0.0) // NaN stays
            }
        }
    }
}

impl Semantics for Reduce {
    fn check(&self) -> Result<(), String> {
        let (x, out, kind) = (&self.x, &self.out, self.kind);
        ensure!(x.dtype().is_float(), "x is {}, must be f32, f16 or bf16", x.dtype());
        let mut shape = x.shape().to_vec();
        if kind != Reduction::L2Normalize {
            shape[x.rank() - 1] = 1;
        }
        ensure!(out.shape() == shape, "out is {:?}, must be {shape:?}", out.shape());
        if kind == Reduction::ArgMax {
            one_of("out of arg-max", out.dtype(), &[DType::I32])?;
            ensure!(x.dim(0) <= i32::MAX as usize, "rows are longer than an i32 index reaches");
        } else {
            ensure!(out.dtype().is_float(), "out is {}, must be f32, f16 or bf16", out.dtype());
        }
        if let Some(mask) = &self.mask {
            ensure!(kind != Reduction::L2Normalize, "l2-normalize takes no mask");
            let fits = mask.dtype() == DType::U8 && mask.broadcast(x.shape()).is_ok();
            ensure!(fits, "mask must be u8 and broadcast to x's {:?}", x.shape());
        }
        let eps = self.eps.get();
        if kind == Reduction::L2Normalize {
            ensure!(eps.is_finite() && eps >= 1e-15, "eps must be at least 1e-15");
        } else {
            ensure!(self.eps == Real::new(1e-12), "{kind} has no eps");
        }
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::MASK, self.mask.is_some());
        f.set(Features::BROADCAST, self.mask.is_some_and(|m| m.shape() != self.x.shape()));
        f
    }

    fn flops(&self) -> u64 {
        let each = match self.kind {
            Reduction::L2Normalize | Reduction::LogSumExp => 3,
            _ => 1,
        };
        (self.x.numel() as u64).saturating_mul(each)
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (x, n) = (arrays.of("x"), self.x.dim(0));
        let mask = arrays.get("mask").map(|m| m.expand(self.x.shape()));
        let (mut data, mut magnitude) = (Vec::new(), Vec::new());
        for r in 0..self.x.rows() {
            let visible = |i: &usize| mask.as_ref().is_none_or(|m| m[r * n + i] != 0.0);
            let row: Vec<(usize, f64)> = (0..n).filter(visible).map(|i| (i, x.data[r * n + i])).collect();
            let (value, error) = self.of_row(&row);
            if self.kind == Reduction::L2Normalize {
                data.extend(row.iter().map(|&(_, v)| if value.is_nan() { value } else { v / value }));
            } else {
                data.push(value);
                magnitude.push(if error.is_finite() { error } else { 0.0 });
            }
        }
        arrays.set_with("out", data, magnitude);
    }

    fn bound(&self, _output: &str) -> Bound {
        match self.kind {
            Reduction::ArgMax => Bound::EXACT,
            // Exact but for the sign of a zero.
            Reduction::Max => Bound::relative(0.0),
            _ => Bound::dot(self.x.dim(0)),
        }
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        let spec = &operand.spec;
        match operand.name {
            // Multiples of a half: ties.
            "x" if self.kind.picks() && fill != Fill::Tiny => {
                Some((0..spec.numel()).map(|_| (rng.value(fill) * 2.0).round() / 2.0).collect())
            }
            // Every fourth row or so is masked entirely.
            "mask" => {
                let mut values = Vec::new();
                for _ in 0..if spec.dim(0) == 0 { 0 } else { spec.rows() } {
                    let shows = rng.below(4);
                    let value = |_| if rng.below(4) < shows { 1.0 + rng.below(255) as f64 } else { 0.0 };
                    values.extend((0..spec.dim(0)).map(value));
                }
                Some(values)
            }
            _ => None,
        }
    }

    fn may_alias(&self, out: &str, input: &str) -> bool {
        self.kind == Reduction::L2Normalize && out == "out" && input == "x"
    }

    fn class(&self) -> Self {
        let build = || -> crate::Result<Self> {
            let mask = self.mask.as_ref().map(class_spec).transpose()?;
            Ok(Reduce { x: class_spec(&self.x)?, out: class_spec(&self.out)?, mask, ..*self })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let of = |kind: Reduction, d, shape: &[usize]| {
            let mut last = shape.to_vec();
            if kind != Reduction::L2Normalize {
                last[shape.len() - 1] = 1;
            }
            let out = if kind == Reduction::ArgMax { I32 } else { d };
            Reduce { kind, ..Reduce::new(spec(d, shape), spec(out, &last)) }
        };
        let mut all = Vec::new();
        for &kind in Reduction::ALL {
            for shape in [&[3, 67][..], &[1], &[2, 0], &[0, 9], &[4, 1], &[2, 3, 31], &[1, 2053]] {
                all.push(of(kind, F32, shape));
            }
            all.extend([of(kind, F16, &[3, 130]), of(kind, BF16, &[17])]);
            let x = strided(F32, &[3, 67], &[1, 5]);
            all.push(Reduce { x, ..of(kind, F32, &[3, 67]) });
        }
        for &kind in Reduction::ALL.iter().filter(|k| **k != Reduction::L2Normalize) {
            let base = of(kind, F32, &[2, 6, 21]);
            all.push(Reduce { mask: Some(spec(U8, &[2, 6, 21])), ..base });
            all.push(Reduce { mask: Some(spec(U8, &[2, 1, 21])), ..base });
            all.push(Reduce { mask: Some(spec(U8, &[6, 1])), ..base });
            all.push(Reduce { mask: Some(strided(U8, &[2, 6, 21], &[21, 0, 1])), ..base });
        }
        // mean pooling: the tokens of [batch, t, d] last
        let pool = of(Reduction::Mean, F32, &[2, 12, 7]);
        all.push(Reduce { x: strided(F32, &[2, 12, 7], &[84, 1, 12]), mask: Some(spec(U8, &[2, 1, 7])), ..pool });
        all.push(Reduce { out: spec(F32, &[3, 1]), ..of(Reduction::Sum, F16, &[3, 500]) });
        all.push(Reduce { out: strided(F32, &[3, 1], &[7, 1]), ..of(Reduction::Max, F32, &[3, 40]) });
        all.push(Reduce { out: strided(F32, &[3, 40], &[90, 2]), ..of(Reduction::L2Normalize, F32, &[3, 40]) });
        all.push(Reduce { eps: 3.0.into(), ..of(Reduction::L2Normalize, F32, &[6, 8]) });
        all.push(Reduce { determinism: Determinism::ThreadCount, ..of(Reduction::Sum, F32, &[2, 3000]) });
        all.push(Reduce { determinism: Determinism::BatchInvariant, ..of(Reduction::Mean, F32, &[5, 300]) });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    const NAN: f64 = f64::NAN;
    const INF: f64 = f64::INFINITY;

    fn row(kind: Reduction, x: &[f64], mask: Option<&[f64]>) -> f64 {
        let out = if kind == Reduction::ArgMax { DType::I32 } else { DType::F32 };
        let mut op = Reduce { kind, ..Reduce::new(spec(DType::F32, &[x.len()]), spec(out, &[1])) };
        op.mask = mask.map(|m| spec(DType::U8, &[m.len()]));
        let given = [("x", x), ("mask", mask.unwrap_or_default())];
        compute(op, &given[..if mask.is_some() { 2 } else { 1 }]).of("out").data[0]
    }

    #[test]
    fn cases_hold() {
        check_cases::<Reduce>();
    }

    #[test]
    fn empty_and_masked_rows() {
        use Reduction::*;
        for (kind, want) in [(Sum, 0.0), (Mean, 0.0), (Max, -INF), (LogSumExp, -INF), (ArgMax, -1.0)] {
            assert_eq!(row(kind, &[], None), want, "{kind} of nothing");
            assert_eq!(row(kind, &[3.0, NAN], Some(&[0.0, 0.0])), want, "{kind}, masked");
        }
        assert_eq!(row(Mean, &[3.0, NAN, 5.0], Some(&[1.0, 0.0, 255.0])), 4.0);
        assert_eq!(row(ArgMax, &[9.0, 1.0, 5.0], Some(&[0.0, 1.0, 1.0])), 2.0, "the index counts hidden elements");
    }

    #[test]
    fn ties_nan_and_infinities() {
        use Reduction::*;
        assert_eq!(row(ArgMax, &[1.0, 7.0, 7.0], None), 1.0);
        assert_eq!(row(ArgMax, &[-0.0, 0.0], None), 0.0);
        assert_eq!(row(ArgMax, &[INF, NAN, NAN], None), 1.0);
        assert_eq!(row(ArgMax, &[-INF, -INF], None), 0.0);
        assert!(row(Max, &[INF, NAN], None).is_nan());
        assert!(row(LogSumExp, &[1.0, NAN], None).is_nan() && row(LogSumExp, &[INF, NAN], None).is_nan());
        assert_eq!(row(LogSumExp, &[INF, 1.0], None), INF);
        assert_eq!(row(LogSumExp, &[-INF, -INF], None), -INF);
        assert_close(&[row(LogSumExp, &[1000.0, 1000.0], None)], &[1000.0 + 2f64.ln()]);
        assert!(row(Sum, &[INF, -INF], None).is_nan());
    }

    #[test]
    fn l2_normalize() {
        let x = spec(DType::F32, &[3, 2]);
        let op = Reduce { kind: Reduction::L2Normalize, ..Reduce::new(x, x) };
        let got = compute(op, &[("x", &[3.0, -4.0, 0.0, 0.0, 1.0, INF])]);
        assert_close(&got.of("out").data, &[0.6, -0.8, 0.0, 0.0, 0.0, NAN]);
        let got = compute(Reduce { eps: 10.0.into(), ..op }, &[("x", &[3.0, -4.0, 0.0, 0.0, 1.0, NAN])]);
        assert_close(&got.of("out").data, &[0.3, -0.4, 0.0, 0.0, NAN, NAN]);
        assert_refused(Reduce { eps: 0.0.into(), ..op }, "eps");
        assert_refused(Reduce { mask: Some(spec(DType::U8, &[2])), ..op }, "mask");
    }

    #[test]
    fn refusals() {
        let (x, out) = (spec(DType::F32, &[2, 3]), spec(DType::F32, &[2, 1]));
        assert_refused(Reduce::new(x, x), "out");
        assert_refused(Reduce::new(spec(DType::I8, &[2, 3]), out), "x is i8");
        assert_refused(Reduce { kind: Reduction::ArgMax, ..Reduce::new(x, out) }, "out");
        assert_refused(Reduce { mask: Some(spec(DType::F32, &[3])), ..Reduce::new(x, out) }, "mask");
        assert_refused(Reduce { mask: Some(spec(DType::U8, &[2])), ..Reduce::new(x, out) }, "mask");
        assert_refused(Reduce { eps: 0.5.into(), ..Reduce::new(x, out) }, "eps");
    }
}
