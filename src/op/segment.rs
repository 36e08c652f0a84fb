//! Sums and softmax over segments of rows, as graph models of materials need.
//!
//! `segments[i]` (i32, in any order) names the segment of row `i`; outside `0 .. count` the row belongs to none.
//! `sum`: `out[s] = sum of rows of s`, `out [count, d]`, empty segments zero. `softmax`: per column over the rows of a segment,
//! `out [rows, d]`, rows of no segment zero, a segment whose column is -inf throughout zero, one
//! whose column holds NaN or +inf NaN. `count` is `out`'s row count for `sum`, the field for `softmax`.

use std::collections::BTreeMap;

use super::{
    gather::{fill_rows, named_row},
    softmax::softmax_row,
    *,
};
use crate::{dtype::DType, layout::Spec};

words! {
    /// What is computed of a segment.
    SegmentKind {
        /// Sum of rows.
        Sum = "sum",
        /// Softmax down each column.
        Softmax = "softmax",
    }
}

descriptor! {
    /// Per segment of rows: a sum, or a softmax: see the [module](self).
    Segment = "segment";
    operands {
        /// `[rows, d]`
        x: In,
        /// i32 `[rows]`
        segments: In,
        /// `[count, d]` for sum, `[rows, d]` for softmax.
        out: Out,
    }
    optional {}
    fields {
        /// What to compute.
        kind: SegmentKind = SegmentKind::Sum,
        /// Number of segments, for softmax.
        count: usize = 0,
    }
}

impl Segment {
    /// `(rows, d, count)`
    pub fn dims(&self) -> (usize, usize, usize) {
        let count = if self.kind == SegmentKind::Sum { self.out.dim(1) } else { self.count };
        (self.x.dim(1), self.x.dim(0), count)
    }
}

impl Semantics for Segment {
    fn check(&self) -> Result<(), String> {
        let (x, segments, out) = (&self.x, &self.segments, &self.out);
        ensure!(x.rank() == 2 && out.rank() == 2, "x and out must have rank 2");
        ensure!(x.dtype().is_float() && out.dtype().is_float(), "x and out must be f32, f16 or bf16");
        let (rows, d, count) = self.dims();
        ensure!(segments.shape() == [rows] && segments.dtype() == DType::I32, "segments must be i32 [{rows}]");
        if self.kind == SegmentKind::Sum {
            ensure!(out.dim(0) == d, "out has rows of {}, x of {d}", out.dim(0));
            ensure!(self.count == 0, "count is out's row count for sum; leave the field 0");
        } else {
            ensure!(out.shape() == x.shape(), "out is {:?}, must be x's {:?}", out.shape(), x.shape());
            // A kernel keeps a number or two per segment and column.
            let fits = count <= i32::MAX as usize && Spec::new(DType::F32, &[2, count, d]).is_ok();
            ensure!(fits, "{count} segments are more than an i32 names or memory holds");
        }
        Ok(())
    }

    fn features(&self) -> Features {
        Features::empty()
    }

    fn flops(&self) -> u64 {
        (self.x.numel() as u64).saturating_mul(if self.kind == SegmentKind::Sum { 1 } else { 5 })
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (_, d, count) = self.dims();
        let x = arrays.of("x");
        // Only the segments that have rows.
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, &s) in arrays.of("segments").data.iter().enumerate() {
            if let Some(s) = named_row(s, count) {
                members.entry(s).or_default().push(i);
            }
        }
        let (mut data, mut magnitude) = (vec![0.0; self.out.numel()], vec![0.0; self.out.numel()]);
        for (s, of) in members {
            for j in 0..d {
                let column: Vec<f64> = of.iter().map(|&i| x.data[i * d + j]).collect();
                if self.kind == SegmentKind::Sum {
                    data[s * d + j] = column.iter().sum();
                    magnitude[s * d + j] = column.iter().map(|v| v.abs()).sum();
                } else {
                    let (values, errors) = softmax_row(&column, &vec![0.0; of.len()], false);
                    for (&i, (v, e)) in of.iter().zip(values.into_iter().zip(errors)) {
                        (data[i * d + j], magnitude[i * d + j]) = (v, e);
                    }
                }
            }
        }
        arrays.set_with("out", data, magnitude);
    }

    fn bound(&self, _output: &str) -> Bound {
        Bound::dot(self.dims().0)
    }

    fn fill(&self, operand: &Operand, _fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        (operand.name == "segments").then(|| fill_rows(operand.spec.numel(), self.dims().2, rng))
    }

    fn class(&self) -> Self {
        let rows = class_rows(self.dims().0);
        let build = || -> crate::Result<Self> {
            let segments = Spec::new(self.segments.dtype(), &[rows])?;
            let count = if self.kind == SegmentKind::Sum { 0 } else { class_rows(self.count) };
            let op = Segment { x: class_spec(&self.x)?, segments, out: class_spec(&self.out)?, count, ..*self };
            op.check().map_err(|why| crate::Error::invalid(op, why))?;
            Ok(op)
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let of = |kind, d, rows, width, count| {
            let sum = kind == SegmentKind::Sum;
            let op = Segment::new(
                spec(d, &[rows, width]),
                spec(I32, &[rows]),
                spec(d, &[if sum { count } else { rows }, width]),
            );
            Segment { kind, count: if sum { 0 } else { count }, ..op }
        };
        let mut all = Vec::new();
        for &kind in SegmentKind::ALL {
            for (rows, width, count) in [
                (20, 7, 4), (1, 1, 1), (0, 5, 3), (6, 0, 3), (6, 5, 0), (33, 16, 1), (40, 3, 100), (7, 1, 3),
                (300, 2, 5), (5, 1031, 2),
            ] {
                all.push(of(kind, F32, rows, width, count));
            }
            all.extend([of(kind, F16, 31, 9, 4), of(kind, BF16, 31, 9, 4)]);
            let base = of(kind, F32, 20, 7, 4);
            all.push(Segment { x: strided(F32, &[20, 7], &[11, 1]), ..base });
            all.push(Segment { x: strided(F32, &[20, 7], &[1, 20]), segments: strided(I32, &[20], &[2]), ..base });
            let rows = base.out.dim(1);
            all.push(Segment { out: strided(F32, &[rows, 7], &[30, 2]), ..base });
            all.push(Segment { out: spec(BF16, &[rows, 7]), ..base });
            all.push(Segment { determinism: Determinism::ThreadCount, ..base });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    const NAN: f64 = f64::NAN;
    const INF: f64 = f64::INFINITY;

    fn of(rows: usize, out: &[usize], kind: SegmentKind, count: usize) -> Segment {
        let op = Segment::new(spec(DType::F32, &[rows, 1]), spec(DType::I32, &[rows]), spec(DType::F32, out));
        Segment { kind, count, ..op }
    }

    #[test]
    fn cases_hold() {
        check_cases::<Segment>();
    }

    #[test]
    fn sums() {
        let op = of(5, &[3, 1], SegmentKind::Sum, 0);
        let segments = [2.0, 0.0, 2.0, 3.0, -1.0];
        let got = compute(op, &[("x", &[1.0, 10.0, 2.0, NAN, NAN]), ("segments", &segments)]);
        assert_eq!(got.of("out").data, [10.0, 0.0, 3.0], "an empty segment is zero, rows of none are left out");
        let got = compute(op, &[("x", &[1.0, NAN, INF, 0.0, 0.0]), ("segments", &segments)]);
        assert_close(&got.of("out").data, &[NAN, 0.0, INF]);
    }

    #[test]
    fn softmax_down_the_columns() {
        let op = of(6, &[6, 1], SegmentKind::Softmax, 2);
        let x = [0.0, 5.0, 3f64.ln(), -INF, 7.0, 7.0];
        let got = compute(op, &[("x", &x), ("segments", &[0.0, 1.0, 0.0, 0.0, -7.0, 2.0])]);
        assert_close(&got.of("out").data, &[0.25, 1.0, 0.75, 0.0, 0.0, 0.0]);
        let (x, segments) = ([-INF, NAN, -INF, -INF, 7.0, 7.0], [0.0, 1.0, 0.0, 0.0, 1.0, 2.0]);
        let got = compute(op, &[("x", &x), ("segments", &segments)]);
        assert_close(&got.of("out").data, &[0.0, NAN, 0.0, 0.0, NAN, 0.0]);
    }

    #[test]
    fn refusals() {
        assert_refused(of(4, &[3, 2], SegmentKind::Sum, 0), "rows of 2");
        assert_refused(of(4, &[3, 1], SegmentKind::Sum, 3), "count");
        assert_refused(of(4, &[3, 1], SegmentKind::Softmax, 3), "out");
        assert_refused(of(4, &[4, 1], SegmentKind::Softmax, usize::MAX), "segments are more");
        let op = of(4, &[3, 1], SegmentKind::Sum, 0);
        assert_refused(Segment { segments: spec(DType::I32, &[3]), ..op }, "segments");
        assert_refused(Segment { x: spec(DType::I8, &[4, 1]), ..op }, "x and out");
    }
}
