//! Adding rows into a tensor by index: the combine step of a mixture of experts.
//!
//! `out[index[i]] += weight[i] * x[i]`, in the order of `i` (so the result is reproducible); an index outside `out`
//! adds nothing. Each element's terms and what it held before are summed in f32 and rounded to `out`'s dtype once.

use super::{
    gather::{fill_rows, named_row},
    *,
};
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out[index[i]] += weight[i] * x[i]`: see the [module](self).
    Scatter = "scatter";
    operands {
        /// `[n, d]`
        x: In,
        /// i32 `[n]`
        index: In,
        /// `[rows, d]`
        out: InOut,
    }
    optional {
        /// f32 `[n]`
        weight: In,
    }
    fields {}
}

impl Semantics for Scatter {
    fn check(&self) -> Result<(), String> {
        let (x, index, out) = (&self.x, &self.index, &self.out);
        ensure!(x.rank() == 2 && out.rank() == 2, "x must be [n, d] and out [rows, d]");
        ensure!(x.dim(0) == out.dim(0), "x has rows of {}, out of {}", x.dim(0), out.dim(0));
        ensure!(x.dtype().is_float() && out.dtype().is_float(), "x and out must be f32, f16 or bf16");
        let n = [x.dim(1)];
        ensure!(index.shape() == n && index.dtype() == DType::I32, "index must be i32 {n:?}");
        let fits = self.weight.is_none_or(|w| w.shape() == n && w.dtype() == DType::F32);
        ensure!(fits, "weight must be f32 {n:?}");
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::SCALES, self.weight.is_some());
        f
    }

    fn flops(&self) -> u64 {
        (self.x.numel() as u64).saturating_mul(if self.weight.is_some() { 2 } else { 1 })
    }

    fn bytes(&self, operands: &Operands) -> u64 {
        // Of `out`, at most the named rows, read and written.
        let rows = self.x.dim(1).min(self.out.dim(1)).saturating_mul(self.out.dim(0));
        let touched = self.out.dtype().bytes(rows).unwrap_or(0) as u64;
        let read = operands.iter().filter(|o| o.role == Role::In).map(|o| o.spec.bytes() as u64);
        read.fold(touched.saturating_mul(2), u64::saturating_add)
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (x, index, weight) = (arrays.of("x"), arrays.of("index"), arrays.get("weight"));
        let (d, rows) = (self.out.dim(0), self.out.dim(1));
        let mut data = arrays.of("out").data.clone();
        let mut magnitude: Vec<f64> = data.iter().map(|v| v.abs()).collect();
        for (i, &row) in index.data.iter().enumerate() {
            let Some(row) = named_row(row, rows) else { continue };
            let factor = weight.map_or(1.0, |w| w.data[i]);
            for j in 0..d {
                let term = factor * x.data[i * d + j];
                data[row * d + j] += term;
                magnitude[row * d + j] += term.abs();
            }
        }
        arrays.set_with("out", data, magnitude);
    }

    fn bound(&self, _output: &str) -> Bound {
        Bound::dot(self.x.dim(1).saturating_add(1))
    }

    fn fill(&self, operand: &Operand, _fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        (operand.name == "index").then(|| fill_rows(operand.spec.numel(), self.out.dim(1), rng))
    }

    fn class(&self) -> Self {
        let n = class_rows(self.x.dim(1));
        let build = || -> crate::Result<Self> {
            let index = Spec::new(self.index.dtype(), &[n])?;
            let weight = self.weight.map(|w| Spec::new(w.dtype(), &[n])).transpose()?;
            Ok(Scatter { x: class_spec(&self.x)?, index, out: class_spec(&self.out)?, weight, ..*self })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let of = |d, out, n, rows, width| {
            Scatter::new(spec(d, &[n, width]), spec(I32, &[n]), spec(out, &[rows, width]))
        };
        let mut all = Vec::new();
        for (n, rows, width) in [
            (7, 5, 20), (1, 1, 1), (0, 4, 5), (4, 0, 5), (4, 5, 0), (40, 3, 65), (3, 200, 17), (33, 1, 64),
            (5, 2, 1031),
        ] {
            let base = of(F32, F32, n, rows, width);
            all.extend([base, Scatter { weight: Some(spec(F32, &[n])), ..base }]);
        }
        for d in [F16, BF16] {
            all.extend([of(d, d, 20, 4, 33), of(d, F32, 20, 4, 33), of(F32, d, 20, 4, 33)]);
            all.push(Scatter { weight: Some(spec(F32, &[20])), ..of(d, d, 20, 4, 33) });
        }
        let base = Scatter { weight: Some(spec(F32, &[12])), ..of(F32, F32, 12, 6, 20) };
        all.push(Scatter { x: strided(F32, &[12, 20], &[31, 1]), out: strided(F32, &[6, 20], &[50, 1]), ..base });
        all.push(Scatter { x: strided(F32, &[12, 20], &[1, 12]), out: strided(F32, &[6, 20], &[1, 7]), ..base });
        all.push(Scatter { x: strided(F32, &[12, 20], &[0, 1]), index: strided(I32, &[12], &[2]), ..base });
        all.push(Scatter { weight: Some(strided(F32, &[12], &[3])), ..base });
        all.push(Scatter { determinism: Determinism::ThreadCount, ..base });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    fn small() -> Scatter {
        Scatter::new(spec(DType::F32, &[4, 2]), spec(DType::I32, &[4]), spec(DType::F32, &[3, 2]))
    }

    #[test]
    fn cases_hold() {
        check_cases::<Scatter>();
    }

    #[test]
    fn rows_add_up_and_garbage_adds_nothing() {
        let op = Scatter { weight: Some(spec(DType::F32, &[4])), ..small() };
        let got = compute(op, &[
            ("x", &[1.0, 2.0, f64::NAN, 1.0, 10.0, 20.0, f64::NAN, f64::NAN]),
            ("index", &[2.0, 3.0, 2.0, -1.0]),
            ("weight", &[1.0, 1.0, 0.5, 1.0]),
            ("out", &[-0.0, f64::NAN, 0.0, 5.0, 100.0, 200.0]),
        ]);
        let out = &got.of("out").data;
        assert_close(out, &[-0.0, f64::NAN, 0.0, 5.0, 106.0, 212.0]);
        assert!(out[0].is_sign_negative(), "rows that are not named keep their bits");
    }

    #[test]
    fn only_the_named_rows_are_counted() {
        let op = Scatter::new(spec(DType::F32, &[2, 8]), spec(DType::I32, &[2]), spec(DType::F16, &[1000, 8]));
        assert_eq!(Op::from(op).cost(), Cost { flops: 16, bytes: 64 + 8 + 2 * 2 * 8 * 2 });
    }

    #[test]
    fn refusals() {
        let f = |s: &[usize]| spec(DType::F32, s);
        assert_refused(Scatter { index: f(&[4]), ..small() }, "index");
        assert_refused(Scatter { index: spec(DType::I32, &[3]), ..small() }, "index");
        assert_refused(Scatter { out: f(&[3, 3]), ..small() }, "rows of 2");
        assert_refused(Scatter { out: f(&[6]), ..small() }, "out");
        assert_refused(Scatter { weight: Some(f(&[3])), ..small() }, "weight");
        let overlapping = Spec::strided(DType::F32, &[3, 2], &[0, 1]).unwrap();
        assert_refused(Scatter { out: overlapping, ..small() }, "overlap");
    }
}
