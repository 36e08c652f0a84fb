//! Linear attention with a random-feature map (MoLFormer and its family).
//!
//! `f(x) = relu(x omega) + eps` per head; `out[i] = f(q_i) . S_i / (f(q_i) . z_i + eps)` with `S = sum_j f(k_j) v_jᵀ` and
//! `z = sum_j f(k_j)`, over all valid `j` or, when causal, `j <= i`.
//!
//! - `lengths` (i32 `[batch]`, clamped to `0 ..= t`): keys beyond are ignored, query rows beyond are zero.
//! - A row whose denominator is 0 is zero.
//! - NaN or infinity in an input spoils its head in its sequence; which elements of it is not said.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// Attention whose cost is linear in length: see the [module](self).
    LinearAttention = "linear_attention";
    operands {
        /// `[batch, t, heads, d]`
        q: In,
        /// `[batch, t, heads, d]`
        k: In,
        /// `[batch, t, heads, dv]`
        v: In,
        /// f32 `[d, features]`
        omega: Weight,
        /// `[batch, t, heads, dv]`
        out: Out,
    }
    optional {
        /// i32 `[batch]`
        lengths: In,
    }
    fields {
        /// Added to features and to the denominator.
        eps: Real = Real::new(1e-6),
        /// Hides later positions.
        causal: bool = false,
    }
}

/// Features of one head's rows, with what their errors are relative to: 0 where the relu is surely shut.
struct Mapped {
    value: Vec<f64>,
    magnitude: Vec<f64>,
}

/// Sums over keys, per feature and value element, with those of absolute values and of the features' errors.
struct Sums {
    z: Vec<f64>,
    z_mag: Vec<f64>,
    s: Vec<f64>,
    s_abs: Vec<f64>,
    s_mag: Vec<f64>,
}

impl Sums {
    fn new(features: usize, dv: usize) -> Sums {
        let [z, z_mag] = [features; 2].map(|n| vec![0.0; n]);
        let [s, s_abs, s_mag] = [features * dv; 3].map(|n| vec![0.0; n]);
        Sums { z, z_mag, s, s_abs, s_mag }
    }

    fn add(&mut self, k: Mapped, v: &[f64]) {
        for (f, (value, mag)) in k.value.into_iter().zip(k.magnitude).enumerate() {
            self.z[f] += value;
            self.z_mag[f] += mag;
            for (at, v) in (f * v.len()..).zip(v) {
                self.s[at] += value * v;
                self.s_abs[at] += value * v.abs();
                self.s_mag[at] += mag * v.abs();
            }
        }
    }
}

impl LinearAttention {
    /// `(batch, t, heads, d, features, dv)`
    pub fn dims(&self) -> (usize, usize, usize, usize, usize, usize) {
        let (q, v) = (&self.q, &self.v);
        (q.dim(3), q.dim(2), q.dim(1), q.dim(0), self.omega.dim(0), v.dim(0))
    }

    fn map(&self, row: &[f64], omega: &[f64]) -> Mapped {
        let (.., d, features, _) = self.dims();
        let error = Bound::dot(d).relative;
        let (mut value, mut magnitude) = (Vec::new(), Vec::new());
        for f in 0..features {
            let (dot, abs) = row.iter().enumerate().fold((0.0, 0.0), |(dot, abs), (i, x)| {
                let product = x * omega[i * features + f];
                (dot + product, abs + product.abs())
            });
            value.push(Activation::Relu.apply(dot) + self.eps.f64());
            magnitude.push(if dot < -error * abs { 0.0 } else { abs });
        }
        Mapped { value, magnitude }
    }
}

impl Semantics for LinearAttention {
    fn check(&self) -> Result<(), String> {
        ensure!(self.q.rank() == 4 && self.v.rank() == 4, "q must be [batch, t, heads, d], v [batch, t, heads, dv]");
        ensure!(self.omega.rank() == 2 && self.omega.dtype() == DType::F32, "omega must be f32 [d, features]");
        let (batch, t, heads, d, _, dv) = self.dims();
        ensure!(t <= i32::MAX as usize, "t must fit i32");
        ensure!(self.omega.dim(1) == d, "omega has d = {}, q {d}", self.omega.dim(1));
        for (name, s, width) in [("q", self.q, d), ("k", self.k, d), ("v", self.v, dv), ("out", self.out, dv)] {
            let want = [batch, t, heads, width];
            ensure!(s.dtype().is_float(), "{name} is {}, must be f32, f16 or bf16", s.dtype());
            ensure!(s.shape() == want, "{name} must be {want:?}");
        }
        if let Some(l) = &self.lengths {
            ensure!(l.dtype() == DType::I32 && l.shape() == [batch], "lengths must be i32 [{batch}]");
        }
        ensure!(self.eps.get().is_finite() && self.eps.get() >= 0.0, "eps must be finite and not negative");
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::CAUSAL, self.causal);
        f.set(Features::LENGTHS, self.lengths.is_some());
        f
    }

    fn flops(&self) -> u64 {
        let (batch, t, heads, d, features, dv) = self.dims();
        // Both maps, the sums over keys, the products with queries.
        let per_row = [d, dv].iter().fold(4u64, |n, &s| n.saturating_add((s as u64).saturating_mul(4)));
        [batch, t, heads, features].iter().fold(per_row, |n, &s| n.saturating_mul(s as u64))
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (batch, t, heads, _, features, dv) = self.dims();
        let (mut out, mut out_mag) = (vec![0.0; self.out.numel()], vec![0.0; self.out.numel()]);
        let omega = &arrays.of("omega").data;
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let valid = arrays.get("lengths").map_or(t, |l| (l.data[b].max(0.0) as usize).min(t));
            let mut sums = Sums::new(features, dv);
            let add = |sums: &mut Sums, j: usize| {
                let row = (b * t + j) * heads + h;
                sums.add(self.map(arrays.of("k").row(row), omega), arrays.of("v").row(row));
            };
            if !self.causal {
                (0..valid).for_each(|j| add(&mut sums, j));
            }
            for i in 0..valid {
                if self.causal {
                    add(&mut sums, i);
                }
                let Sums { z, z_mag, s, s_abs, s_mag } = &sums;
                let row = (b * t + i) * heads + h;
                let q = self.map(arrays.of("q").row(row), omega);
                let dot = |q: &[f64], sum: &[f64], e: usize, step: usize| {
                    q.iter().enumerate().map(|(f, q)| q * sum[f * step + e]).sum::<f64>()
                };
                let denominator = dot(&q.value, z, 0, 1) + self.eps.f64();
                if denominator == 0.0 {
                    continue;
                }
                let off = dot(&q.magnitude, z, 0, 1) + dot(&q.value, z_mag, 0, 1);
                for e in 0..dv {
                    let y = dot(&q.value, s, e, dv) / denominator;
                    let sum = dot(&q.value, s_abs, e, dv);
                    let moved = dot(&q.magnitude, s_abs, e, dv) + dot(&q.value, s_mag, e, dv);
                    out[row * dv + e] = y;
                    out_mag[row * dv + e] = (sum + moved + y.abs() * off) / denominator;
                }
            }
        }
        arrays.set_with("out", out, out_mag);
    }

    /// The magnitude holds what errors of the features do to numerator and denominator, so the fraction is that of the
    /// longest chain: the map's dot, the sum over keys, the sum over features, the division.
    fn bound(&self, _output: &str) -> Bound {
        let (_, t, _, d, features, _) = self.dims();
        let chain = [d, t, features].map(|n| Bound::dot(n).relative).iter().sum::<f64>();
        Bound::relative(chain + 4.0 * f32::EPSILON as f64)
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        match (operand.name, fill) {
            ("lengths", _) => Some(super::attention::fill_lengths(operand.spec.numel(), self.q.dim(2), rng)),
            // What a NaN spoils beyond its own row is not defined; a large map only moves the range.
            (_, Fill::Special) | ("omega", Fill::Large) => {
                Some((0..operand.spec.numel()).map(|_| rng.value(Fill::Normal)).collect())
            }
            _ => None,
        }
    }

    fn class(&self) -> Self {
        let (batch, t, heads, ..) = self.dims();
        let long = |s: &Spec| Spec::new(s.dtype(), &[batch, class_rows(t), heads, s.dim(0)]);
        let build = || -> crate::Result<Self> {
            Ok(LinearAttention {
                q: long(&self.q)?,
                k: long(&self.k)?,
                v: long(&self.v)?,
                out: long(&self.out)?,
                omega: self.omega.dense(),
                lengths: self.lengths.map(|s| s.dense()),
                ..*self
            })
        };
        build().ok().filter(|op| op.check().is_ok()).unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |s: &[usize], t: &[usize]| Spec::strided(F32, s, t).expect("a case's spec");
        let plain = |dtype, [batch, t, heads, d, features, dv]: [usize; 6]| {
            let (q, v) = (spec(dtype, &[batch, t, heads, d]), spec(dtype, &[batch, t, heads, dv]));
            LinearAttention::new(q, q, v, spec(F32, &[d, features]), v)
        };
        let mut all = Vec::new();
        for size in [
            [1, 1, 1, 1, 8, 1], [0, 3, 2, 8, 16, 8], [2, 0, 2, 8, 16, 8], [2, 3, 0, 8, 16, 8], [2, 3, 2, 0, 16, 8], [2, 3, 2, 8, 0, 8],
            [2, 3, 2, 8, 16, 0], [1, 1, 3, 64, 32, 64], [2, 7, 3, 5, 11, 13], [1, 31, 2, 64, 32, 32], [3, 17, 2, 32, 32, 32], [1, 130, 1, 16, 16, 8],
        ] {
            let base = plain(F32, size);
            all.extend([base, LinearAttention { causal: true, ..base }]);
        }
        for causal in [false, true] {
            let base = LinearAttention { causal, ..plain(F32, [5, 9, 2, 16, 32, 24]) };
            let lengths = Some(spec(I32, &[5]));
            all.push(LinearAttention { lengths, ..base });
            all.push(LinearAttention { eps: Real::new(0.01), lengths, ..base });
            for dtype in [F16, BF16] {
                all.push(LinearAttention { causal, lengths, ..plain(dtype, [5, 9, 2, 16, 32, 24]) });
                all.push(LinearAttention { causal, out: spec(F32, &[2, 6, 2, 12]), ..plain(dtype, [2, 6, 2, 64, 32, 12]) });
            }
            let fused = strided(&[5, 9, 2, 16], &[9 * 128, 128, 16, 1]);
            all.push(LinearAttention { q: fused, k: fused, ..base });
            let heads_first = strided(&[5, 9, 2, 24], &[432, 24, 216, 1]);
            all.push(LinearAttention { v: heads_first, out: heads_first, omega: strided(&[16, 32], &[1, 16]), ..base });
            all.push(LinearAttention { determinism: Determinism::BatchInvariant, ..base });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn plain(batch: usize, t: usize, d: usize, features: usize) -> LinearAttention {
        let s = |shape: &[usize]| spec(DType::F32, shape);
        let q = s(&[batch, t, 1, d]);
        LinearAttention::new(q, q, s(&[batch, t, 1, 2]), s(&[d, features]), s(&[batch, t, 1, 2]))
    }

    #[test]
    fn cases_hold() {
        check_cases::<LinearAttention>();
    }

    #[test]
    fn equals_the_quadratic_form() {
        let (q, k, v, omega) = (normal(6 * 4, 1), normal(6 * 4, 2), normal(6 * 2, 3), normal(4 * 5, 4));
        let eps = 0.125;
        let map = |x: &[f64], f: usize| (0..4).map(|i| x[i] * omega[i * 5 + f]).sum::<f64>().max(0.0) + eps;
        for causal in [false, true] {
            let op = LinearAttention { causal, eps: Real::new(0.125), ..plain(1, 6, 4, 5) };
            let got = compute(op, &[("q", &q), ("k", &k), ("v", &v), ("omega", &omega)]);
            for i in 0..6 {
                let weight = |j: usize| (0..5).map(|f| map(&q[i * 4..], f) * map(&k[j * 4..], f)).sum::<f64>();
                let seen = 0..if causal { i + 1 } else { 6 };
                let sum: f64 = seen.clone().map(weight).sum::<f64>() + eps;
                let want = [0, 1].map(|e| seen.clone().map(|j| weight(j) * v[j * 2 + e]).sum::<f64>() / sum);
                assert_close(&got.of("out").data[i * 2..][..2], &want);
            }
        }
    }

    #[test]
    fn lengths_hide_and_are_clamped() {
        let (q, k, v, omega) = (normal(12, 1), normal(12, 2), normal(24, 3), normal(3, 4));
        let op = LinearAttention { lengths: Some(spec(DType::I32, &[4])), ..plain(4, 3, 1, 3) };
        let run = |lengths: &[f64]| {
            compute(op, &[("q", &q), ("k", &k), ("v", &v), ("omega", &omega), ("lengths", lengths)]).of("out").data.clone()
        };
        let got = run(&[2.0, 0.0, 99.0, -1.0]);
        assert_eq!(got, run(&[2.0, 0.0, 3.0, 0.0]));
        assert_eq!(got[4..12], [0.0; 8], "rows beyond are zero");
        let alone = compute(plain(1, 2, 1, 3), &[("q", &q[..2]), ("k", &k[..2]), ("v", &v[..4]), ("omega", &omega)]);
        assert_close(&got[..4], &alone.of("out").data);
    }

    #[test]
    fn a_denominator_of_zero_gives_zero() {
        let op = LinearAttention { eps: Real::ZERO, ..plain(1, 2, 1, 1) };
        let got = compute(op, &[("q", &[-1.0, 1.0]), ("k", &[1.0, 3.0]), ("v", &[1.0, 2.0, 5.0, 6.0]), ("omega", &[1.0])]);
        assert_close(&got.of("out").data, &[0.0, 0.0, 4.0, 5.0]);
    }

    #[test]
    fn refusals() {
        let op = plain(2, 3, 4, 5);
        assert_refused(LinearAttention { omega: spec(DType::F32, &[5, 5]), ..op }, "omega has");
        assert_refused(LinearAttention { omega: spec(DType::F16, &[4, 5]), ..op }, "omega must");
        assert_refused(LinearAttention { k: spec(DType::F32, &[2, 4, 1, 4]), ..op }, "k must be");
        assert_refused(LinearAttention { out: spec(DType::F32, &[2, 3, 1, 4]), ..op }, "out must be");
        assert_refused(LinearAttention { lengths: Some(spec(DType::I32, &[3])), ..op }, "lengths");
        assert_refused(LinearAttention { eps: Real::new(-1.0), ..op }, "eps");
    }
}
