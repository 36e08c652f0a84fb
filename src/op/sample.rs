//! Drawing a token from logits, on the device.
//!
//! Per row: `temperature = 0` takes the arg-max (first of equals; NaN first). Otherwise the `top_k` largest logits are
//! kept (0 keeps all; ties by lowest index) and softmaxed as `exp((x - max) / temperature)`, then the shortest prefix in
//! descending order whose sum reaches `top_p` is kept (at least one), and the first index of the sorted prefix taken at
//! which the cumulative probability exceeds `u * total`.
//!
//! `u` is uniform in [0, 1): `(h >> 8) / 2^24`, where `h` is the high word of splitmix64 seeded with
//! `seed[0] + 2^32 seed[1] + row * 0x9e3779b97f4a7c15` (the two i32 of `seed` as u32, all wrapping), one step. The same on
//! every device; two devices may differ only where `u` lies within rounding of a boundary. A row of only -inf gives
//! index 0; a row with NaN or +inf gives the first NaN, else the first +inf; `n = 0` gives -1.

use super::{reduce::arg_max, top_k::descending, *};
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// One index per row, drawn by the row's logits: see the [module](self).
    Sample = "sample";
    operands {
        /// `[rows, n]`
        logits: In,
        /// i32 `[2]`: low and high word; change it at every step.
        seed: In,
        /// i32 `[rows]`
        out: Out,
    }
    optional {}
    fields {
        /// 0 is greedy.
        temperature: Real = Real::ONE,
        /// How many of the largest to keep; 0 is all.
        top_k: usize = 0,
        /// Probability mass to keep.
        top_p: Real = Real::ONE,
    }
}

/// A row's kept logits in descending order, with their cumulative probabilities.
struct Sorted {
    order: Vec<usize>,
    /// Probability of the first `i + 1`, relative to all that `top_k` keeps.
    cumulative: Vec<f64>,
    /// How far an f32 kernel's cumulative probability may be off.
    slack: f64,
}

impl Sample {
    /// `(rows, n)`
    pub fn dims(&self) -> (usize, usize) {
        (self.logits.dim(1), self.logits.dim(0))
    }

    /// The uniform number of a row, from the two words of `seed`.
    pub fn uniform(seed: [i32; 2], row: usize) -> f32 {
        let seed = seed[0] as u32 as u64 | (seed[1] as u32 as u64) << 32;
        let high = (Rng(seed.wrapping_add((row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))).next() >> 32) as u32;
        (high >> 8) as f32 / (1u32 << 24) as f32
    }

    /// The index of rows that are not drawn: greedy, empty, or with logits that no softmax is defined on.
    fn certain(&self, row: &[f64]) -> Option<f64> {
        let Some(best) = arg_max(row.iter().copied()) else { return Some(-1.0) };
        (self.temperature.is_zero() || !row[best].is_finite()).then_some(best as f64)
    }

    fn sorted(&self, row: &[f64]) -> Sorted {
        let mut order = descending(row);
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let max = row[order[0]];
        let exponents: Vec<f64> = order.iter().map(|&i| (row[i] - max) / self.temperature.f64()).collect();
        let sum: f64 = exponents.iter().map(|e| e.exp()).sum();
        // An exponential turns its argument's error into a relative one of its own.
        let arguments: f64 = exponents.iter().filter(|e| e.is_finite()).map(|e| e.exp() / sum * e.abs()).sum();
        let mut total = 0.0;
        let cumulative = exponents.iter().map(|e| {
            total += e.exp() / sum;
            total
        });
        let cumulative = cumulative.collect();
        Sorted { order, cumulative, slack: Bound::dot(row.len()).relative * (1.0 + arguments) }
    }

    /// What is wrong with drawing index `got` from a row.
    fn judge_row(&self, row: &[f64], u: f64, got: f64) -> Result<(), String> {
        if let Some(index) = self.certain(row) {
            ensure!(got == index, "is {got}, must be {index}");
            return Ok(());
        }
        let Sorted { order, cumulative, slack } = self.sorted(row);
        let Some(at) = order.iter().position(|&i| i as f64 == got) else {
            return Err(format!("is {got}, which is not among the {} kept", order.len()));
        };
        ensure!(row[order[at]] != f64::NEG_INFINITY, "is {got}, whose probability is 0");
        let top_p = self.top_p.f64();
        // The prefixes that reach top_p within rounding: from the shortest to the longest of them.
        let reaches = |mass: f64| cumulative.iter().position(|&c| c >= mass).unwrap_or(order.len() - 1);
        let (first, last) = (reaches(top_p - slack), reaches(top_p + slack));
        let below = if at == 0 { 0.0 } else { cumulative[at - 1] };
        let hit = |&end: &usize| {
            let target = u * cumulative[end];
            at <= end && below - slack <= target && target <= cumulative[at] + slack
        };
        ensure!(
            (first..=last).any(|end| hit(&end)),
            "is {got}, which covers {below} to {} of prefixes of {} to {}, u is {u}",
            cumulative[at],
            cumulative[first],
            cumulative[last]
        );
        Ok(())
    }
}

fn words(seed: &Array) -> [i32; 2] {
    [seed.data[0] as i32, seed.data[1] as i32]
}

impl Semantics for Sample {
    fn check(&self) -> Result<(), String> {
        ensure!(self.logits.rank() == 2 && self.logits.dtype().is_float(), "logits must be float [rows, n]");
        let (rows, n) = self.dims();
        ensure!(n <= i32::MAX as usize, "rows are longer than an i32 index reaches");
        ensure!(self.seed.shape() == [2] && self.seed.dtype() == DType::I32, "seed must be i32 [2]");
        ensure!(self.out.shape() == [rows] && self.out.dtype() == DType::I32, "out must be i32 [{rows}]");
        let (temperature, top_p) = (self.temperature.get(), self.top_p.get());
        ensure!(temperature.is_finite() && temperature >= 0.0, "temperature must be finite and not negative");
        ensure!((0.0..=1.0).contains(&top_p), "top_p must lie between 0 and 1");
        Ok(())
    }

    fn features(&self) -> Features {
        Features::empty()
    }

    fn flops(&self) -> u64 {
        // A comparison; to draw also the difference, the exponential and two sums.
        (self.logits.numel() as u64).saturating_mul(if self.temperature.is_zero() { 1 } else { 5 })
    }

    fn reference(&self, arrays: &mut Arrays) {
        let seed = words(arrays.of("seed"));
        let draw = |r: usize| {
            let row = arrays.of("logits").row(r);
            self.certain(row).unwrap_or_else(|| {
                let Sorted { order, cumulative, .. } = self.sorted(row);
                let end = cumulative.iter().position(|&c| c >= self.top_p.f64()).unwrap_or(order.len() - 1);
                let target = Sample::uniform(seed, r) as f64 * cumulative[end];
                order[cumulative.iter().position(|&c| c > target).unwrap_or(end).min(end)] as f64
            })
        };
        let drawn = (0..self.dims().0).map(draw).collect();
        arrays.set("out", drawn);
    }

    fn bound(&self, _output: &str) -> Bound {
        Bound::EXACT // unless `judge` knows better
    }

    fn judge(&self, output: &str, expected: &Arrays, got: &Array) -> Option<Result<(), String>> {
        (output == "out").then(|| {
            let (rows, seed) = (self.dims().0, words(expected.of("seed")));
            ensure!(got.data.len() == rows, "out has {} elements, expected {rows}", got.data.len());
            (0..rows).try_for_each(|r| {
                let verdict = self.judge_row(expected.of("logits").row(r), Sample::uniform(seed, r) as f64, got.data[r]);
                verdict.map_err(|why| format!("out[{r}] {why}"))
            })
        })
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        let n = operand.spec.numel();
        match operand.name {
            "seed" => Some((0..n).map(|_| rng.next() as i32 as f64).collect()),
            // Multiples of a half: ties.
            "logits" if fill != Fill::Tiny => Some((0..n).map(|_| (rng.value(fill) * 2.0).round() / 2.0).collect()),
            _ => None,
        }
    }

    fn class(&self) -> Self {
        let build = || -> crate::Result<Self> {
            let out = Spec::new(self.out.dtype(), &[class_rows(self.dims().0)])?;
            Ok(Sample { logits: class_spec(&self.logits)?, seed: self.seed.dense(), out, ..*self })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let of = |d, rows, n| Sample::new(spec(d, &[rows, n]), spec(I32, &[2]), spec(I32, &[rows]));
        let mut all = Vec::new();
        for (rows, n) in [(1, 1), (0, 7), (3, 0), (9, 2), (7, 67), (2, 1031), (1, 4099)] {
            let base = of(F32, rows, n);
            all.extend([base, Sample { temperature: Real::ZERO, ..base }]);
            all.push(Sample { top_k: 5, temperature: 0.7.into(), ..base });
            all.push(Sample { top_p: 0.8.into(), temperature: 1.3.into(), ..base });
            all.push(Sample { top_k: 40, top_p: 0.5.into(), ..base });
        }
        for d in [F16, BF16] {
            all.extend([of(d, 5, 130), Sample { temperature: Real::ZERO, ..of(d, 5, 130) }]);
            all.push(Sample { top_k: 7, top_p: 0.9.into(), ..of(d, 5, 130) });
        }
        let base = of(F32, 5, 130);
        all.extend([Sample { top_k: 1, ..base }, Sample { top_p: Real::ZERO, ..base }, Sample { top_k: 1000, ..base }]);
        all.push(Sample { temperature: 0.01.into(), ..base });
        all.push(Sample { logits: strided(F32, &[5, 130], &[200, 1]), out: strided(I32, &[5], &[3]), ..base });
        all.push(Sample { logits: strided(F32, &[5, 130], &[1, 5]), seed: strided(I32, &[2], &[2]), ..base });
        all.push(Sample { logits: strided(F32, &[5, 130], &[0, 1]), top_k: 20, ..base });
        all.push(Sample { determinism: Determinism::BatchInvariant, ..base });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    const NAN: f64 = f64::NAN;
    const INF: f64 = f64::INFINITY;

    fn of(n: usize) -> Sample {
        Sample::new(spec(DType::F32, &[1, n]), spec(DType::I32, &[2]), spec(DType::I32, &[1]))
    }

    fn draw(op: Sample, logits: &[f64], seed: [i32; 2]) -> f64 {
        compute(op, &[("logits", logits), ("seed", &seed.map(f64::from))]).of("out").data[0]
    }

    #[test]
    fn cases_hold() {
        check_cases::<Sample>();
    }

    #[test]
    fn the_uniform_number_is_splitmix() {
        // The generator's published outputs for seeds 0 and 1234567.
        assert_eq!(Rng(0).next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(Rng(1_234_567).next(), 6_457_827_717_110_365_317);
        assert_eq!(Sample::uniform([0, 0], 0), 0xe220a8 as f32 / 16_777_216.0);
        // A row steps the seed as the generator itself does.
        let mut rng = Rng(7 + (3 << 32));
        for row in 0..4 {
            assert_eq!(Sample::uniform([7, 3], row), (rng.next() >> 40) as f32 / 16_777_216.0);
        }
        let all_ones = (Rng(u64::MAX).next() >> 40) as f32 / 16_777_216.0;
        assert_eq!(Sample::uniform([-1, -1], 0), all_ones, "words are unsigned");
    }

    #[test]
    fn rows_that_are_not_drawn() {
        let greedy = |x: &[f64]| draw(Sample { temperature: Real::ZERO, ..of(x.len()) }, x, [1, 2]);
        assert_eq!(greedy(&[1.0, 5.0, 5.0]), 1.0, "first of equals");
        assert_eq!(greedy(&[INF, NAN, NAN]), 1.0);
        for draw in [greedy, |x: &[f64]| draw(of(x.len()), x, [1, 2])] {
            assert_eq!(draw(&[-INF, -INF]), 0.0);
            assert_eq!(draw(&[1.0, INF, INF]), 1.0);
            assert_eq!(draw(&[1.0, INF, NAN, NAN]), 2.0);
            assert_eq!(draw(&[]), -1.0);
        }
    }

    #[test]
    fn draws_follow_the_sorted_prefix() {
        // Sorted: index 1 covers [0, 1/2), 2 [1/2, 3/4), 0 [3/4, 1).
        let x = [1f64, 2.0, 1.0 + 1e-12].map(f64::ln);
        let mut seen = [0; 3];
        for s in 0..200 {
            let u = Sample::uniform([s, 9], 0) as f64;
            let want = if u < 0.5 { 1.0 } else if u < 0.75 { 2.0 } else { 0.0 };
            assert_eq!(draw(of(3), &x, [s, 9]), want);
            assert_eq!(draw(Sample { top_k: 1, ..of(3) }, &x, [s, 9]), 1.0);
            assert_eq!(draw(Sample { top_p: Real::ZERO, ..of(3) }, &x, [s, 9]), 1.0, "at least one is kept");
            let two = draw(Sample { top_p: 0.6.into(), ..of(3) }, &x, [s, 9]);
            assert_eq!(two, if u < 2.0 / 3.0 { 1.0 } else { 2.0 }, "the prefix that reaches 0.6 has two");
            let cold = draw(Sample { temperature: 0.5.into(), ..of(3) }, &x, [s, 9]);
            assert_eq!(cold, if u < 4.0 / 6.0 { 1.0 } else if u < 5.0 / 6.0 { 2.0 } else { 0.0 });
            seen[want as usize] += 1;
        }
        assert!(seen.iter().all(|&n| n > 20), "{seen:?}");
        assert_eq!(draw(Sample { top_k: 1, ..of(3) }, &[2.0, 2.0, 1.0], [4, 4]), 0.0, "ties by lowest index");
    }

    #[test]
    fn judged_within_rounding_of_a_boundary_only() {
        let judge = |op: Sample, x: &[f64], u: f64| -> Vec<usize> {
            (0..x.len()).filter(|&i| op.judge_row(x, u, i as f64).is_ok()).collect()
        };
        let x = [2f64, 1.0, 1.0].map(f64::ln);
        assert_eq!(judge(of(3), &x, 0.49), [0]);
        assert_eq!(judge(of(3), &x, 0.5), [0, 1]);
        assert_eq!(judge(of(3), &x, 0.51), [1]);
        assert_eq!(judge(of(3), &x, 0.75), [1, 2]);
        assert_eq!(judge(Sample { top_k: 2, ..of(3) }, &x, 0.99), [1], "what top_k drops is wrong at any u");
        // A prefix of one or of two reaches 0.5 within rounding.
        let half = Sample { top_p: 0.5.into(), ..of(3) };
        assert_eq!(judge(half, &x, 0.9), [0, 1]);
        assert_eq!(judge(half, &x, 0.1), [0]);
        assert_eq!(judge(of(3), &[0.0, -INF, -INF], 1.0 - f64::exp2(-24.0)), [0]);
        let op = of(3);
        for wrong in [-1.0, 3.0, 0.5, NAN] {
            assert!(op.judge_row(&x, 0.5, wrong).is_err(), "{wrong}");
        }
        assert_eq!(judge(of(3), &[1.0, NAN, NAN], 0.3), [1]);
    }

    #[test]
    fn the_reference_satisfies_its_own_verdict() {
        for (i, case) in Sample::cases().into_iter().enumerate() {
            for fill in [Fill::Normal, Fill::Large, Fill::Tiny, Fill::Special] {
                let mut arrays = filled(case, fill, i as u64);
                case.reference(&mut arrays);
                assert_eq!(Op::from(case).accept("out", &arrays, arrays.of("out")), Ok(()), "{case}");
            }
        }
    }

    #[test]
    fn refusals() {
        assert_refused(Sample { temperature: (-1.0).into(), ..of(3) }, "temperature");
        assert_refused(Sample { top_p: 1.5.into(), ..of(3) }, "top_p");
        assert_refused(Sample { seed: spec(DType::I32, &[3]), ..of(3) }, "seed");
        assert_refused(Sample { out: spec(DType::I32, &[2]), ..of(3) }, "out");
        assert_refused(Sample { logits: spec(DType::F32, &[3]), ..of(3) }, "logits");
    }
}
