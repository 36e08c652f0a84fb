//! Rows of a table by index: embeddings, also straight from quantized tables.
//!
//! `out[i] = scale * table[index[i]]`, converted to `out`'s dtype. An index outside the table gives a row of zeros.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out[i] = scale * table[index[i]]`: see the [module](self).
    Gather = "gather";
    operands {
        /// `[rows, d]` of any dtype but i32.
        table: Weight,
        /// i32 `[n]`
        index: In,
        /// `[n, d]`
        out: Out,
    }
    optional {}
    fields {
        /// Multiplies the rows (Granite's embedding multiplier).
        scale: Real = Real::ONE,
    }
}

/// Row numbers for a test: legal ones with repeats, and some that name no row.
pub(super) fn fill_rows(count: usize, rows: usize, rng: &mut Rng) -> Vec<f64> {
    let garbage = [-1.0, rows.min(i32::MAX as usize) as f64, i32::MIN as f64, i32::MAX as f64];
    let mut pick = || match rng.below(8) {
        0 => garbage[rng.below(4)],
        _ if rows == 0 => 0.0,
        _ => rng.below(rows.min(i32::MAX as usize)) as f64,
    };
    (0..count).map(|_| pick()).collect()
}

/// The row an index operand's element names, where it names one of `rows`.
pub(super) fn named_row(index: f64, rows: usize) -> Option<usize> {
    (index >= 0.0 && index < rows as f64).then_some(index as usize)
}

impl Semantics for Gather {
    fn check(&self) -> Result<(), String> {
        let (table, index, out) = (&self.table, &self.index, &self.out);
        ensure!(table.rank() == 2 && index.rank() == 1, "table must be [rows, d] and index [n]");
        ensure!(table.dtype() != DType::I32, "table is i32, which has no rows to scale");
        ensure!(index.dtype() == DType::I32, "index is {}, must be i32", index.dtype());
        let shape = [index.dim(0), table.dim(0)];
        ensure!(out.shape() == shape, "out is {:?}, must be {shape:?}", out.shape());
        ensure!(out.dtype().is_float(), "out is {}, must be f32, f16 or bf16", out.dtype());
        ensure!(self.scale.get().is_finite(), "scale must be finite");
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::SCALE, self.scale != Real::ONE);
        f
    }

    fn flops(&self) -> u64 {
        if self.scale == Real::ONE { 0 } else { self.out.numel() as u64 }
    }

    fn bytes(&self, _operands: &Operands) -> u64 {
        // Of the table, the named rows only.
        let rows = self.table.dtype().bytes(self.table.dim(0)).unwrap_or(0) as u64;
        let read = rows.saturating_mul(self.index.dim(0) as u64);
        read.saturating_add(self.index.bytes() as u64).saturating_add(self.out.bytes() as u64)
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (table, index) = (arrays.of("table"), arrays.of("index"));
        let mut data = Vec::new();
        for &i in &index.data {
            match named_row(i, self.table.dim(1)) {
                Some(row) => data.extend(table.row(row).iter().map(|v| v * self.scale.f64())),
                None => data.extend(std::iter::repeat_n(0.0, self.table.dim(0))),
            }
        }
        arrays.set("out", data);
    }

    fn bound(&self, _output: &str) -> Bound {
        // The product is rounded to f32 first.
        if self.scale == Real::ONE { Bound::EXACT } else { Bound::relative(f32::EPSILON as f64) }
    }

    fn fill(&self, operand: &Operand, _fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        (operand.name == "index").then(|| fill_rows(operand.spec.numel(), self.table.dim(1), rng))
    }

    fn class(&self) -> Self {
        let n = class_rows(self.index.dim(0));
        let build = || -> crate::Result<Self> {
            let index = Spec::new(self.index.dtype(), &[n])?;
            Ok(Gather { table: self.table.dense(), index, out: class_spec(&self.out)?, ..*self })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let of = |d, out, rows, n, width| Gather::new(spec(d, &[rows, width]), spec(I32, &[n]), spec(out, &[n, width]));
        let mut all = Vec::new();
        for (rows, n, width) in [(11, 7, 20), (1, 1, 1), (0, 3, 5), (4, 0, 5), (5, 4, 0), (300, 33, 65), (7, 2, 1031)] {
            all.push(of(F32, F32, rows, n, width));
        }
        for &d in DType::ALL.iter().filter(|d| **d != I32) {
            let width = if d.is_quantized() { 3 * d.block().0 } else { 37 };
            let base = of(d, F32, 13, 9, width);
            all.extend([base, Gather { scale: 12.0.into(), ..base }, of(d, BF16, 5, 3, width)]);
            all.push(Gather { scale: 0.3.into(), ..of(d, F16, 5, 3, width) });
        }
        let base = of(F32, F32, 11, 7, 20);
        all.push(Gather { table: strided(F32, &[11, 20], &[33, 1]), ..base });
        all.push(Gather { table: strided(F32, &[11, 20], &[1, 11]), ..base });
        all.push(Gather { table: strided(F32, &[11, 20], &[0, 1]), ..base });
        all.push(Gather { index: strided(I32, &[7], &[3]), out: strided(F32, &[7, 20], &[64, 2]), ..base });
        all.push(Gather { table: strided(Q8_0, &[6, 64], &[96, 1]), ..of(Q8_0, F32, 6, 5, 64) });
        all.push(Gather { determinism: Determinism::BatchInvariant, ..of(BF16, BF16, 6, 5, 64) });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    #[test]
    fn cases_hold() {
        check_cases::<Gather>();
    }

    #[test]
    fn indexes_outside_the_table_give_zeros() {
        let op = Gather::new(spec(DType::F32, &[2, 2]), spec(DType::I32, &[5]), spec(DType::F32, &[5, 2]));
        let op = Gather { scale: 2.0.into(), ..op };
        let index = [1.0, -1.0, 2.0, i32::MIN as f64, 0.0];
        let got = compute(op, &[("table", &[f64::NAN, 1.0, 3.0, -4.0]), ("index", &index)]);
        assert_close(&got.of("out").data, &[6.0, -8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, f64::NAN, 2.0]);
        let empty = Gather::new(spec(DType::F32, &[0, 2]), spec(DType::I32, &[1]), spec(DType::F32, &[1, 2]));
        assert_eq!(compute(empty, &[("index", &[0.0])]).of("out").data, [0.0, 0.0]);
    }

    #[test]
    fn only_the_named_rows_are_counted() {
        let table = spec(DType::Q4_0, &[1000, 64]);
        let op = Gather::new(table, spec(DType::I32, &[3]), spec(DType::F16, &[3, 64]));
        assert_eq!(Op::from(op).cost(), Cost { flops: 0, bytes: 3 * 36 + 3 * 4 + 3 * 64 * 2 });
    }

    #[test]
    fn refusals() {
        let (table, index, out) = (spec(DType::F32, &[4, 3]), spec(DType::I32, &[2]), spec(DType::F32, &[2, 3]));
        assert_refused(Gather::new(table, index, spec(DType::F32, &[3, 3])), "out");
        assert_refused(Gather::new(table, spec(DType::F32, &[2]), out), "index");
        assert_refused(Gather::new(spec(DType::F32, &[4, 3, 1]), index, out), "table");
        assert_refused(Gather::new(spec(DType::I32, &[4, 3]), index, out), "table");
        assert_refused(Gather::new(table, index, spec(DType::I8, &[2, 3])), "out");
    }
}
