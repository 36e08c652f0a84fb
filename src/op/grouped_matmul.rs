//! Matrix multiplication per group: the experts of a mixture, over rows sorted by expert.
//!
//! Rows `offsets[g] .. offsets[g + 1]` of `x` are multiplied by `w[g]`: `out[i, j] = act(sum_k x[i, k] w[g, j, k])`, or with
//! `up` the gated pair `act(x w[g]ᵀ) * (x up[g]ᵀ)`, then times `row_scale[i]` (the router's weight).
//!
//! - `offsets` is i32 `[groups + 1]`, read on the device at run time. It is clamped: each entry to `0 ..= rows` and to at
//!   least the one before it. Rows in no group are zero.
//! - Empty groups cost nothing. `k = 0` gives zeros.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out[rows of g] = row_scale * act(x w[g]ᵀ) (* x up[g]ᵀ)`: see the [module](self).
    GroupedMatmul = "grouped_matmul";
    operands {
        /// `[rows, k]`, sorted by group.
        x: In,
        /// `[groups, n, k]`
        w: Weight,
        /// i32 `[groups + 1]`
        offsets: In,
        /// `[rows, n]`
        out: Out,
    }
    optional {
        /// `[groups, n, k]`: the second factor of a gated pair.
        up: Weight,
        /// f32 `[rows]`
        row_scale: In,
    }
    fields {
        /// Applied to the first product.
        act: Activation = Activation::None,
    }
}

impl GroupedMatmul {
    /// `(rows, groups, n, k)`
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        (self.x.dim(1), self.w.dim(2), self.w.dim(1), self.w.dim(0))
    }
}

impl Semantics for GroupedMatmul {
    fn check(&self) -> Result<(), String> {
        use DType::*;
        ensure!(self.x.rank() == 2 && self.w.rank() == 3, "x must be [rows, k] and w [groups, n, k]");
        let (rows, groups, n, k) = self.dims();
        ensure!(self.x.dim(0) == k, "x has k = {}, w {k}", self.x.dim(0));
        ensure!(self.out.shape() == [rows, n], "out must be [{rows}, {n}]");
        let offsets = &self.offsets;
        ensure!(offsets.dtype() == I32 && offsets.shape() == [groups + 1], "offsets must be i32 [{}]", groups + 1);
        one_of("x", self.x.dtype(), &[F32, F16, BF16])?;
        one_of("out", self.out.dtype(), &[F32, F16, BF16])?;
        ensure!(!matches!(self.w.dtype(), U8 | I32), "w is {}, which is not a weight type", self.w.dtype());
        if let Some(up) = &self.up {
            ensure!(up.shape() == self.w.shape() && up.dtype() == self.w.dtype(), "up must have w's shape and dtype");
        }
        if let Some(s) = &self.row_scale {
            ensure!(s.dtype() == F32 && s.shape() == [rows], "row_scale must be f32 [{rows}]");
        }
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::ACTIVATION, self.act != Activation::None);
        f.set(Features::GATED, self.up.is_some());
        f.set(Features::SCALES, self.row_scale.is_some());
        f
    }

    fn flops(&self) -> u64 {
        let (rows, groups, n, k) = self.dims();
        let products = if groups == 0 { 0 } else { 2 + 2 * u64::from(self.up.is_some()) };
        [rows, n, k].iter().fold(products, |f, &size| f.saturating_mul(size as u64))
    }

    /// A group's weight is read where it has rows: at most as many groups as there are rows.
    fn bytes(&self, operands: &Operands) -> u64 {
        let (rows, groups, ..) = self.dims();
        let moved = operands.iter().map(|o| match o.role {
            Role::Weight => (o.spec.bytes() / groups.max(1)).saturating_mul(groups.min(rows)) as u64,
            _ => o.spec.bytes() as u64,
        });
        moved.fold(0, u64::saturating_add)
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (rows, _, n, k) = self.dims();
        let (mut data, mut magnitude) = (vec![0.0; rows * n], vec![0.0; rows * n]);
        let x = &arrays.of("x").data;
        for (g, group) in segments(arrays.of("offsets"), rows).into_iter().enumerate() {
            for (i, j) in group.flat_map(|i| (0..n).map(move |j| (i, j))) {
                let dot = |w: &Array| {
                    let (a, b) = (&x[i * k..][..k], &w.data[(g * n + j) * k..][..k]);
                    a.iter().zip(b).fold((0.0, 0.0), |(sum, abs), (a, b)| (sum + a * b, abs + (a * b).abs()))
                };
                let (y, mut mag) = dot(arrays.of("w"));
                let mut y = self.act.apply(y);
                if let Some(up) = arrays.get("up") {
                    let (u, u_mag) = dot(up);
                    mag = mag * u.abs() + y.abs() * u_mag;
                    y *= u;
                }
                let scale = arrays.get("row_scale").map_or(1.0, |s| s.data[i]);
                (data[i * n + j], magnitude[i * n + j]) = (y * scale, mag * scale.abs());
            }
        }
        arrays.set_with("out", data, magnitude);
    }

    fn bound(&self, _output: &str) -> Bound {
        let dot = Bound::dot(self.w.dim(0));
        // The activation, its slope and two products after the sums.
        let exact = Bound { relative: dot.relative + 8.0 * f32::EPSILON as f64, ..dot };
        match self.numerics {
            Numerics::Exact => exact,
            Numerics::Fast => Bound { nmse: Some(5e-4), ..exact },
        }
    }

    fn fill(&self, operand: &Operand, _fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        (operand.name == "offsets").then(|| fill_offsets(operand.spec.numel(), self.x.dim(1), rng))
    }

    fn class(&self) -> Self {
        let (rows, _, n, k) = self.dims();
        let rows = class_rows(rows);
        let build = || -> crate::Result<Self> {
            Ok(GroupedMatmul {
                x: Spec::new(self.x.dtype(), &[rows, k])?,
                out: Spec::new(self.out.dtype(), &[rows, n])?,
                w: self.w.dense(),
                offsets: self.offsets.dense(),
                up: self.up.map(|s| s.dense()),
                row_scale: self.row_scale.map(|s| Spec::new(s.dtype(), &[rows])).transpose()?,
                ..*self
            })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let plain = |x, w, rows, groups, n, k| {
            let offsets = spec(I32, &[groups + 1]);
            GroupedMatmul::new(spec(x, &[rows, k]), spec(w, &[groups, n, k]), offsets, spec(x, &[rows, n]))
        };
        let mut all = Vec::new();
        // nothing of each kind, one, more groups than rows, primes
        for (rows, groups, n, k) in [
            (1, 1, 1, 1), (0, 3, 5, 7), (5, 0, 5, 7), (5, 3, 0, 7), (5, 3, 5, 0), (2, 1, 16, 32), (1, 32, 17, 33), (8, 32, 33, 40), (13, 2, 31, 65),
            (61, 5, 17, 96), (97, 7, 29, 33), (64, 4, 32, 48),
        ] {
            all.push(plain(F32, F32, rows, groups, n, k));
        }
        for d in [F16, BF16] {
            all.extend([plain(d, d, 19, 6, 24, 72), plain(F32, d, 8, 32, 9, 64)]);
        }
        for &d in DType::ALL.iter().filter(|d| d.is_quantized()) {
            let k = d.block().0 * 2;
            // The other formats differ in their decoding alone, and cost the reference an encoding each.
            let common = matches!(d, Q4_0 | Q8_0 | Q4_K | Q6_K);
            let (all_rows, groups, n) = if common { (&[1, 8, 21][..], 6, 11) } else { (&[8][..], 3, 5) };
            for &rows in all_rows {
                let exact = plain(F32, d, rows, groups, n, k);
                all.extend([exact, GroupedMatmul { numerics: Numerics::Fast, ..exact }]);
            }
            let base = plain(BF16, d, 9, 4, 7, k);
            all.push(GroupedMatmul { up: Some(base.w), act: Activation::Silu, row_scale: Some(spec(F32, &[9])), ..base });
        }
        for rows in [3, 26] {
            let base = plain(F32, F32, rows, 5, 18, 36);
            let row_scale = Some(spec(F32, &[rows]));
            all.push(GroupedMatmul { row_scale, ..base });
            all.extend(Activation::ALL.iter().map(|&act| GroupedMatmul { act, up: Some(base.w), row_scale, ..base }));
            all.push(GroupedMatmul { act: Activation::GeluErf, ..base });
            all.push(GroupedMatmul { x: strided(F32, &[rows, 36], &[80, 2]), out: strided(F32, &[rows, 18], &[30, 1]), ..base });
            all.push(GroupedMatmul { w: strided(F32, &[5, 18, 36], &[648, 1, 18]), ..base });
            all.push(GroupedMatmul { w: strided(F32, &[5, 18, 36], &[0, 36, 1]), ..base });
            all.push(GroupedMatmul { determinism: Determinism::BatchInvariant, ..base });
        }
        let pitch = strided(Q8_0, &[5, 18, 64], &[18 * 96, 96, 1]);
        all.push(GroupedMatmul { w: pitch, ..plain(F32, Q8_0, 7, 5, 18, 64) });
        all
    }
}

/// The rows of each group, as the offsets say once clamped.
pub(crate) fn segments(offsets: &Array, rows: usize) -> Vec<std::ops::Range<usize>> {
    let clamped = offsets.data.iter().scan(0, |low, &o| {
        *low = (o.max(0.0) as usize).min(rows).max(*low);
        Some(*low)
    });
    let clamped: Vec<usize> = clamped.collect();
    clamped.windows(2).map(|w| w[0]..w[1]).collect()
}

/// `n` offsets into `rows` rows: rising, skewed, with empty groups, and in longer lists with rows before the
/// first group and an end beyond the last row.
pub(crate) fn fill_offsets(n: usize, rows: usize, rng: &mut Rng) -> Vec<f64> {
    let few = n < 4;
    let first = if few { 0 } else { rows / 8 };
    let mut all: Vec<f64> = (0..n).map(|_| (first + rng.below(rows + 1 - first) * rng.below(101) / 100) as f64).collect();
    all.sort_by(f64::total_cmp);
    if let [head, .., last] = all.as_mut_slice() {
        *head = first as f64;
        *last = if few { rows } else { rows + 3 } as f64;
    }
    if n > 4 {
        all[2] = all[1];
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn plain(rows: usize, groups: usize, n: usize, k: usize) -> GroupedMatmul {
        let s = |shape: &[usize]| spec(DType::F32, shape);
        GroupedMatmul::new(s(&[rows, k]), s(&[groups, n, k]), spec(DType::I32, &[groups + 1]), s(&[rows, n]))
    }

    #[test]
    fn cases_hold() {
        check_cases::<GroupedMatmul>();
    }

    #[test]
    fn each_row_meets_its_group() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0];
        let w = [10.0, 100.0, 1000.0];
        let run = |offsets: &[f64]| {
            compute(plain(5, 3, 1, 1), &[("x", &x), ("w", &w), ("offsets", offsets)]).of("out").data.clone()
        };
        assert_eq!(run(&[0.0, 2.0, 2.0, 5.0]), [10.0, 20.0, 3000.0, 4000.0, 5000.0], "the second group is empty");
        assert_eq!(run(&[1.0, 2.0, 3.0, 4.0]), [0.0, 20.0, 300.0, 4000.0, 0.0], "rows in no group are zero");
        assert_eq!(run(&[-3.0, 4.0, 2.0, 99.0]), [10.0, 20.0, 30.0, 40.0, 5000.0], "clamped and made to rise");
        assert_eq!(run(&[0.0; 4]), [0.0; 5]);
        assert_eq!(run(&[99.0, 0.0, 0.0, 5.0]), [0.0; 5]);
    }

    #[test]
    fn equals_matmul_group_by_group() {
        let (x, w, up) = (normal(9 * 7, 1), normal(2 * 5 * 7, 2), normal(2 * 5 * 7, 3));
        let scale = normal(9, 4);
        let op = GroupedMatmul { up: Some(spec(DType::F32, &[2, 5, 7])), row_scale: Some(spec(DType::F32, &[9])), act: Activation::Silu, ..plain(9, 2, 5, 7) };
        let given: &[(&str, &[f64])] = &[("x", &x), ("w", &w), ("up", &up), ("row_scale", &scale), ("offsets", &[0.0, 4.0, 9.0])];
        let got = compute(op, given);
        let s = |shape: &[usize]| spec(DType::F32, shape);
        for (g, rows) in [0..4, 4..9].into_iter().enumerate() {
            let m = rows.len();
            let single = Matmul { up: Some(s(&[5, 7])), act: Activation::Silu, ..Matmul::new(s(&[m, 7]), s(&[5, 7]), s(&[m, 5])) };
            let part = g * 35..(g + 1) * 35;
            let want = compute(single, &[("x", &x[rows.start * 7..rows.end * 7]), ("w", &w[part.clone()]), ("up", &up[part])]);
            let scaled: Vec<f64> = want.of("out").data.iter().enumerate().map(|(i, v)| v * scale[rows.start + i / 5]).collect();
            assert_close(&got.of("out").data[rows.start * 5..rows.end * 5], &scaled);
        }
    }

    #[test]
    fn no_terms_give_zeros_and_nan_stays_in_its_row() {
        let empty = compute(plain(2, 1, 3, 0), &[("offsets", &[0.0, 2.0])]);
        assert_eq!(empty.of("out").data, [0.0; 6]);
        let got = compute(plain(3, 1, 1, 1), &[("x", &[1.0, f64::NAN, f64::NAN]), ("w", &[2.0]), ("offsets", &[0.0, 2.0])]);
        let out = &got.of("out").data;
        assert!(out[0] == 2.0 && out[1].is_nan() && out[2] == 0.0, "a row in no group is zero whatever it holds");
    }

    #[test]
    fn few_rows_read_few_weights() {
        let operand_bytes = |op: GroupedMatmul| Op::from(op).cost().bytes;
        assert_eq!(operand_bytes(plain(2, 10, 3, 5)), 4 * (2 * 5 + 2 * 15 + 11 + 2 * 3));
        assert_eq!(operand_bytes(plain(20, 10, 3, 5)), 4 * (20 * 5 + 10 * 15 + 11 + 20 * 3));
    }

    #[test]
    fn filled_offsets_rise_but_for_the_end() {
        for n in 0..12 {
            let offsets = fill_offsets(n, 50, &mut Rng(n as u64));
            assert_eq!(offsets.len(), n);
            assert!(offsets.is_sorted(), "{offsets:?}");
        }
        let long = fill_offsets(7, 50, &mut Rng(1));
        assert_eq!((long[0], long[2], long[6]), (6.0, long[1], 53.0));
    }

    #[test]
    fn refusals() {
        let op = plain(4, 2, 3, 5);
        assert_refused(GroupedMatmul { offsets: spec(DType::I32, &[2]), ..op }, "offsets");
        assert_refused(GroupedMatmul { x: spec(DType::F32, &[4, 6]), ..op }, "k = 6");
        assert_refused(GroupedMatmul { w: spec(DType::I32, &[2, 3, 5]), ..op }, "weight type");
        assert_refused(GroupedMatmul { up: Some(spec(DType::F16, &[2, 3, 5])), ..op }, "up must");
        assert_refused(GroupedMatmul { row_scale: Some(spec(DType::F32, &[3])), ..op }, "row_scale");
    }
}
