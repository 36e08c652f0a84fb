//! The k largest of each row, with their indices, and optionally a softmax over them: a router's choice of experts.
//!
//! Sorted by value, largest first; equal values (and +0, -0) by index, lowest first; NaN counts as larger than
//! everything. `k <= n`. With `softmax` the values are `softmax` over the k chosen, in f32; otherwise they are copies.

use std::cmp::Ordering;

use super::{softmax::softmax_row, *};
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `values, indices = the k largest of x per row`: see the [module](self).
    TopK = "top_k";
    operands {
        /// `[rows, n]`
        x: In,
        /// `[rows, k]`
        values: Out,
        /// i32 `[rows, k]`
        indices: Out,
    }
    optional {}
    fields {
        /// Normalizes the chosen values.
        softmax: bool = false,
    }
}

/// Indices of a row in descending order: NaN first, equals (also +0 and -0) by index.
pub(super) fn descending(row: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&i, &j| {
        let (a, b) = (row[i], row[j]);
        // A stable sort: what compares equal stays in order.
        b.is_nan().cmp(&a.is_nan()).then(b.partial_cmp(&a).unwrap_or(Ordering::Equal))
    });
    order
}

impl TopK {
    /// `(rows, n, k)`
    pub fn dims(&self) -> (usize, usize, usize) {
        (self.x.dim(1), self.x.dim(0), self.values.dim(0))
    }
}

impl Semantics for TopK {
    fn check(&self) -> Result<(), String> {
        let (rows, n, k) = self.dims();
        ensure!(self.x.rank() == 2, "x must be [rows, n]");
        for (name, s) in [("values", &self.values), ("indices", &self.indices)] {
            ensure!(s.shape() == [rows, k], "{name} is {:?}, must be {:?}", s.shape(), [rows, k]);
        }
        ensure!(k <= n && n <= i32::MAX as usize, "k = {k} must not exceed n = {n}, nor n an i32");
        ensure!(self.x.dtype().is_float() && self.values.dtype().is_float(), "x and values must be f32, f16 or bf16");
        one_of("indices", self.indices.dtype(), &[DType::I32])
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::SOFTMAX, self.softmax);
        f
    }

    fn flops(&self) -> u64 {
        // One comparison per element.
        (self.x.numel() as u64).saturating_add(if self.softmax { 4 * self.values.numel() as u64 } else { 0 })
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (rows, n, k) = self.dims();
        let (mut values, mut magnitude, mut indices) = (Vec::new(), Vec::new(), Vec::new());
        for r in 0..rows {
            let row = &arrays.of("x").data[r * n..(r + 1) * n];
            let order = &descending(row)[..k];
            let chosen: Vec<f64> = order.iter().map(|&i| row[i]).collect();
            indices.extend(order.iter().map(|&i| i as f64));
            if self.softmax {
                let (normalized, error) = softmax_row(&chosen, &vec![0.0; k], false);
                values.extend(normalized);
                magnitude.extend(error);
            } else {
                values.extend(chosen);
            }
        }
        arrays.set("indices", indices);
        arrays.set_with("values", values, magnitude);
    }

    fn bound(&self, output: &str) -> Bound {
        if self.softmax && output == "values" { Bound::dot(self.dims().2) } else { Bound::EXACT }
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        // Multiples of a half: ties.
        let ties = operand.name == "x" && fill != Fill::Tiny;
        ties.then(|| (0..operand.spec.numel()).map(|_| (rng.value(fill) * 2.0).round() / 2.0).collect())
    }

    fn class(&self) -> Self {
        let build = || -> crate::Result<Self> {
            let (values, indices) = (class_spec(&self.values)?, class_spec(&self.indices)?);
            Ok(TopK { x: class_spec(&self.x)?, values, indices, ..*self })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let of = |d, rows, n, k| TopK::new(spec(d, &[rows, n]), spec(d, &[rows, k]), spec(I32, &[rows, k]));
        let mut all = Vec::new();
        for (rows, n, k) in [
            (1, 1, 1), (0, 8, 2), (3, 8, 0), (2, 0, 0), (5, 32, 8), (7, 40, 8), (3, 64, 6), (2, 72, 10), (3, 17, 17),
            (1, 1031, 1), (1, 2053, 40), (2, 300, 129),
        ] {
            all.extend([of(F32, rows, n, k), TopK { softmax: true, ..of(F32, rows, n, k) }]);
        }
        for d in [F16, BF16] {
            all.extend([of(d, 4, 40, 8), TopK { softmax: true, values: spec(F32, &[4, 8]), ..of(d, 4, 40, 8) }]);
        }
        let base = of(F32, 4, 40, 8);
        all.push(TopK { values: spec(F16, &[4, 8]), ..base });
        all.push(TopK { x: strided(F32, &[4, 40], &[64, 1]), ..base });
        all.push(TopK { x: strided(F32, &[4, 40], &[1, 4]), softmax: true, ..base });
        all.push(TopK { x: strided(F32, &[4, 40], &[0, 1]), ..base });
        all.push(TopK { values: strided(F32, &[4, 8], &[32, 2]), indices: strided(I32, &[4, 8], &[1, 4]), ..base });
        all.push(TopK { determinism: Determinism::BatchInvariant, ..base });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    const NAN: f64 = f64::NAN;
    const INF: f64 = f64::INFINITY;

    fn row(x: &[f64], k: usize, softmax: bool) -> (Vec<f64>, Vec<f64>) {
        let out = |d| spec(d, &[1, k]);
        let op = TopK { softmax, ..TopK::new(spec(DType::F32, &[1, x.len()]), out(DType::F32), out(DType::I32)) };
        let got = compute(op, &[("x", x)]);
        (got.of("values").data.clone(), got.of("indices").data.clone())
    }

    #[test]
    fn cases_hold() {
        check_cases::<TopK>();
    }

    #[test]
    fn order() {
        assert_eq!(row(&[1.0, 3.0, 2.0, 3.0], 3, false), (vec![3.0, 3.0, 2.0], vec![1.0, 3.0, 2.0]));
        let (values, indices) = row(&[-0.0, 0.0, -0.0], 3, false);
        assert_eq!(indices, [0.0, 1.0, 2.0], "signed zeros are equal");
        assert!(values[0].is_sign_negative() && values[1].is_sign_positive(), "copies keep their sign");
        let (values, indices) = row(&[INF, NAN, -INF, NAN, 5.0], 5, false);
        assert_eq!(indices, [1.0, 3.0, 0.0, 4.0, 2.0]);
        assert_close(&values, &[NAN, NAN, INF, 5.0, -INF]);
        assert_eq!(row(&[1.0], 0, true), (vec![], vec![]));
    }

    #[test]
    fn softmax_over_the_chosen() {
        let (values, indices) = row(&[0.0, 100.0, 100.0 + 3f64.ln()], 2, true);
        assert_eq!(indices, [2.0, 1.0]);
        assert_close(&values, &[0.75, 0.25]);
        assert_eq!(row(&[-INF, -INF], 2, true), (vec![0.0, 0.0], vec![0.0, 1.0]), "all masked");
        assert_close(&row(&[1.0, NAN], 2, true).0, &[NAN, NAN]);
        assert_close(&row(&[1.0, INF], 2, true).0, &[NAN, NAN]);
    }

    #[test]
    fn refusals() {
        let (x, out, indices) = (spec(DType::F32, &[2, 4]), spec(DType::F32, &[2, 3]), spec(DType::I32, &[2, 3]));
        assert_refused(TopK::new(x, spec(DType::F32, &[2, 5]), spec(DType::I32, &[2, 5])), "k = 5");
        assert_refused(TopK::new(x, out, out), "indices");
        assert_refused(TopK::new(x, indices, indices), "values");
        assert_refused(TopK::new(x, out, spec(DType::I32, &[3, 3])), "indices");
        assert_refused(TopK::new(spec(DType::F32, &[8]), out, indices), "x must");
    }
}
