//! Rotary position embedding, in place, optionally writing the result into a cache too.
//!
//! For token `t` at position `p = positions[t]` and pair `i` of `dims / 2`: `angle = p * theta^(-2 i / dims)`, rescaled as
//! `scaling` says, divided by `factors[i]` where given; `(a, b) -> (a cos - b sin, a sin + b cos)`, times yarn's
//! attention factor. Pairs are `(2 i, 2 i + 1)` (`adjacent`: GGUF llama and granite files) or `(i, i + dims / 2)` (`half`:
//! safetensors, BERT-like GGUF). Elements from `dims` on are left alone.
//!
//! - Frequencies and angles are computed in f64 or as an exact f32 product, so that position 131071 is right: the bound
//!   leaves no room for an angle rounded to f32 before it is reduced.
//! - `linear`: angle / factor. `llama3`: wavelengths beyond `original / low` are slowed by `factor`, those
//!   below `original / high` kept, a linear blend between. `yarn`: NTK-by-parts with `beta_fast = high`, `beta_slow = low`: pairs
//!   below `floor(c(high))` are kept, those beyond `ceil(c(low))` slowed by `factor`, a linear blend between, where
//!   `c(turns) = dims * ln(original / (2 pi turns)) / (2 ln theta)` is clamped to `0 ..= dims - 1`; amplitude `attention`
//!   (0 stands for `0.1 ln(factor) + 1`, and for 1 where `factor <= 1`).
//! - With `cache` and `slots`: rotated row `t` is also written to `cache[slots[t]]`, converted once from the unrounded value to
//!   the cache's dtype; slots outside the cache and slots named twice are treated as [`KvAppend`] does.

use super::{
    encoded::{encoded_bound, encoded_magnitudes},
    kv_append::{CACHE_TYPES, appended_bytes, cache_rows, check_cache, destinations, fill_slots},
    *,
};
use crate::{dtype::DType, layout::Spec};

words! {
    /// Which elements form a rotated pair.
    RopeStyle {
        /// `(2 i, 2 i + 1)`
        Adjacent = "adjacent",
        /// `(i, i + dims / 2)`
        Half = "half",
    }
}

words! {
    /// How frequencies are rescaled for longer contexts.
    RopeScaling {
        /// Not at all.
        None = "none",
        /// All by the same factor.
        Linear = "linear",
        /// Llama 3's bands.
        Llama3 = "llama3",
        /// YaRN.
        Yarn = "yarn",
    }
}

descriptor! {
    /// Rotates pairs of elements by an angle that grows with the position: see the [module](self).
    Rope = "rope";
    operands {
        /// `[tokens, heads, d]`, rotated in place.
        x: InOut,
        /// i32 `[tokens]`
        positions: In,
    }
    optional {
        /// f32 `[dims / 2]`: divisors of the frequencies.
        factors: In,
        /// `[capacity, heads, d]` or `[pages, page, heads, d]`
        cache: InOut,
        /// i32 `[tokens]`: rows of the cache (`page * page_size + row` for a paged one).
        slots: In,
    }
    fields {
        /// Pairing.
        style: RopeStyle = RopeStyle::Adjacent,
        /// How many elements of a head are rotated; 0 stands for all.
        dims: usize = 0,
        /// Base of the frequencies.
        theta: Real = Real::new(10000.0),
        /// Rescaling.
        scaling: RopeScaling = RopeScaling::None,
        /// Context extension factor.
        factor: Real = Real::ONE,
        /// `low_freq_factor` or `beta_slow`.
        low: Real = Real::ONE,
        /// `high_freq_factor` or `beta_fast`.
        high: Real = Real::new(4.0),
        /// Context length before the extension.
        original: usize = 8192,
        /// Yarn's amplitude; 0 stands for its formula.
        attention: Real = Real::ZERO,
    }
}

impl Rope {
    /// How many elements of a head are rotated.
    pub fn rotated(&self) -> usize {
        if self.dims == 0 { self.x.dim(0) } else { self.dims }
    }

    /// The angle per position of each pair, rescaled but not yet divided by `factors`.
    pub fn frequencies(&self) -> Vec<f64> {
        let (dims, theta, factor) = (self.rotated(), self.theta.f64(), self.factor.f64());
        let (low, high, original) = (self.low.f64(), self.high.f64(), self.original as f64);
        let tau = std::f64::consts::TAU;
        // Yarn's first and last pair of the blend.
        let pair = |turns: f64| dims as f64 * (original / (turns * tau)).ln() / (2.0 * theta.ln());
        let inside = |pair: f64| pair.max(0.0).min(dims as f64 - 1.0);
        let (first, last) = (inside(pair(high).floor()), inside(pair(low).ceil()));
        let rescale = |i: usize, plain: f64| match self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear => plain / factor,
            RopeScaling::Llama3 => {
                let turns = original * plain / tau; // within the original context
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                plain * (kept + (1.0 - kept) / factor)
            }
            RopeScaling::Yarn => {
                let slowed = ((i as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
                plain * (1.0 - slowed + slowed / factor)
            }
        };
        (0..dims / 2).map(|i| rescale(i, theta.powf(-2.0 * i as f64 / dims as f64))).collect()
    }

    /// What rotated elements are multiplied by: 1 but for yarn.
    pub fn amplitude(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn if !self.attention.is_zero() => self.attention.f64(),
            RopeScaling::Yarn => 0.1 * self.factor.f64().max(1.0).ln() + 1.0,
            _ => 1.0,
        }
    }

    /// The two elements of pair `i`.
    pub fn pair(&self, i: usize) -> (usize, usize) {
        match self.style {
            RopeStyle::Adjacent => (2 * i, 2 * i + 1),
            RopeStyle::Half => (i, i + self.rotated() / 2),
        }
    }
}

impl Semantics for Rope {
    fn check(&self) -> Result<(), String> {
        ensure!(self.x.rank() == 3, "x must be [tokens, heads, d]");
        ensure!(self.x.dtype().is_float(), "x is {}, must be f32, f16 or bf16", self.x.dtype());
        let (tokens, d, dims) = (self.x.dim(2), self.x.dim(0), self.rotated());
        ensure!(dims <= d && dims % 2 == 0, "dims = {dims} must be even and at most d = {d}");
        // Every device keeps a table of the pairs' frequencies.
        ensure!(dims <= 1 << 16, "dims = {dims} is more than {} rotated elements", 1 << 16);
        let p = &self.positions;
        ensure!(p.dtype() == DType::I32 && p.shape() == [tokens], "positions must be i32 [{tokens}]");
        if let Some(f) = &self.factors {
            ensure!(f.dtype() == DType::F32 && f.shape() == [dims / 2], "factors must be f32 [{}]", dims / 2);
        }
        match (&self.slots, &self.cache) {
            (Some(slots), Some(cache)) => check_cache(&self.x, slots, cache)?,
            (None, None) => {}
            _ => return Err("cache and slots come together".into()),
        }
        let fields = [self.theta, self.factor, self.low, self.high, self.attention];
        ensure!(fields.iter().all(|f| f.get().is_finite()), "theta, factor, low, high and attention must be finite");
        ensure!(self.theta.get() > 0.0 && self.factor.get() > 0.0, "theta and factor must be positive");
        let banded = matches!(self.scaling, RopeScaling::Llama3 | RopeScaling::Yarn);
        if banded {
            ensure!(self.low.get() > 0.0 && self.high.get() > self.low.get(), "needs 0 < low < high");
            ensure!(self.original > 0, "original must be positive");
        }
        ensure!(self.scaling != RopeScaling::Yarn || self.theta.get() > 1.0, "yarn needs theta > 1");
        ensure!(self.scaling != RopeScaling::None || self.factor == Real::ONE, "factor needs a scaling");
        ensure!(self.scaling == RopeScaling::Yarn || self.attention.is_zero(), "attention needs scaling=yarn");
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::PARTIAL, self.rotated() != self.x.dim(0));
        f.set(Features::ROPE_SCALING, self.scaling != RopeScaling::None || self.factors.is_some());
        f.set(Features::APPEND, self.cache.is_some());
        f.set(Features::PAGED, self.cache.is_some_and(|c| c.rank() == 4));
        f
    }

    fn flops(&self) -> u64 {
        // Three a rotated element; sine, cosine and angle of a pair once a token.
        let per_token = (3 * self.x.dim(1) as u64 + 20).saturating_mul(self.rotated() as u64);
        (self.x.dim(2) as u64).saturating_mul(per_token)
    }

    fn bytes(&self, operands: &Operands) -> u64 {
        let moved = operands.iter().map(|o| match o.name {
            "cache" => appended_bytes(&self.x, &o.spec),
            "x" => 2 * o.spec.bytes() as u64,
            _ => o.spec.bytes() as u64,
        });
        moved.fold(0, u64::saturating_add)
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (heads, d) = (self.x.dim(1), self.x.dim(0));
        let mut x = arrays.of("x").data.clone();
        let mut magnitude = vec![0.0; x.len()]; // elements left alone stay exact
        let (frequencies, amplitude) = (self.frequencies(), self.amplitude());
        let rows = x.chunks_exact_mut(d.max(1)).zip(magnitude.chunks_exact_mut(d.max(1)));
        for (row, (x, magnitude)) in rows.enumerate() {
            let position = arrays.of("positions").data[row / heads];
            for (i, frequency) in frequencies.iter().enumerate() {
                let divisor = arrays.get("factors").map_or(1.0, |f| f.data[i]);
                let (sin, cos) = (position * frequency / divisor).sin_cos();
                let (at_a, at_b) = self.pair(i);
                let (a, b) = (x[at_a], x[at_b]);
                (x[at_a], x[at_b]) = (amplitude * (a * cos - b * sin), amplitude * (a * sin + b * cos));
                (magnitude[at_a], magnitude[at_b]) = (amplitude.abs() * (a.abs() + b.abs()), amplitude.abs() * (a.abs() + b.abs()));
            }
        }
        if let (Some(spec), Some(slots)) = (&self.cache, arrays.get("slots")) {
            let (mut cache, width) = (arrays.of("cache").data.clone(), heads * d);
            let mut cache_mag = vec![0.0; cache.len()];
            for (t, slot) in destinations(slots, cache_rows(spec)).into_iter().enumerate() {
                let Some(slot) = slot else { continue };
                cache[slot * width..][..width].copy_from_slice(&x[t * width..][..width]);
                let (to, from) = (&mut cache_mag[slot * width..][..width], t * width..(t + 1) * width);
                to.copy_from_slice(&magnitude[from.clone()]);
                encoded_magnitudes(spec.dtype(), &x[from], to);
            }
            arrays.set_with("cache", cache, cache_mag);
        }
        arrays.set_with("x", x, magnitude);
    }

    fn bound(&self, output: &str) -> Bound {
        // Sine and cosine, two products, a sum and the amplitude, each within an ulp or two.
        let rotation = 16.0 * f32::EPSILON as f64;
        match &self.cache {
            Some(cache) if output == "cache" => encoded_bound(cache.dtype(), rotation),
            _ => Bound::relative(rotation),
        }
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        let n = operand.spec.numel();
        match operand.name {
            "positions" => Some((0..n).map(|t| if t == 1 { 131071.0 } else { rng.below(if t % 2 == 0 { 64 } else { 1 << 17 }) as f64 }).collect()),
            "factors" => Some((0..n).map(|_| (1.0 + 7.0 * rng.unit()) as f32 as f64).collect()),
            "slots" => self.cache.map(|c| fill_slots(n, cache_rows(&c), rng)),
            // A block that holds NaN or an infinity has no defined code.
            _ if self.cache.is_some_and(|c| c.dtype().is_quantized()) && fill == Fill::Special => {
                Some((0..n).map(|_| rng.value(Fill::Normal)).collect())
            }
            _ => None,
        }
    }

    fn class(&self) -> Self {
        let tokens = class_rows(self.x.dim(2));
        let build = || -> crate::Result<Self> {
            let ids = Spec::new(DType::I32, &[tokens])?;
            Ok(Rope {
                x: Spec::new(self.x.dtype(), &[tokens, self.x.dim(1), self.x.dim(0)])?,
                positions: ids,
                factors: self.factors.map(|s| s.dense()),
                cache: self.cache.map(|s| s.dense()),
                slots: self.slots.map(|_| ids),
                ..*self
            })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let plain = |dtype, tokens, heads, d| Rope::new(spec(dtype, &[tokens, heads, d]), spec(I32, &[tokens]));
        let mut all = Vec::new();
        for style in [RopeStyle::Adjacent, RopeStyle::Half] {
            for (tokens, heads, d) in [(0, 2, 8), (3, 0, 8), (2, 2, 0), (1, 1, 2), (5, 3, 6), (1, 4, 64), (7, 2, 72), (3, 3, 80), (4, 2, 96), (6, 5, 128)] {
                all.push(Rope { style, ..plain(F32, tokens, heads, d) });
            }
            for dtype in [F16, BF16] {
                all.extend([1, 5].map(|tokens| Rope { style, ..plain(dtype, tokens, 3, 64) }));
            }
            let base = Rope { style, ..plain(F32, 6, 2, 64) };
            for dims in [2, 20, 32, 64] {
                all.push(Rope { dims, ..base });
            }
            let factors = Some(spec(F32, &[32]));
            let factor = Real::new(8.0);
            all.push(Rope { theta: Real::new(500000.0), ..base });
            all.push(Rope { factors, ..base });
            all.push(Rope { scaling: RopeScaling::Linear, factor, ..base });
            all.push(Rope { scaling: RopeScaling::Llama3, factor, theta: Real::new(500000.0), ..base });
            let yarn = Rope { scaling: RopeScaling::Yarn, factor, high: Real::new(32.0), original: 4096, ..base };
            all.push(yarn);
            all.push(Rope { attention: Real::new(0.5), dims: 32, low: Real::new(2.0), ..yarn });
            all.push(Rope { x: strided(F32, &[6, 2, 64], &[384, 64, 1]), ..base });
            all.push(Rope { x: strided(F32, &[6, 2, 64], &[64, 384, 1]), dims: 32, ..base });
            all.push(Rope { x: strided(F32, &[6, 2, 64], &[256, 128, 2]), ..base });
            for &cache in CACHE_TYPES {
                let slots = Some(spec(I32, &[6]));
                all.push(Rope { slots, cache: Some(spec(cache, &[9, 2, 64])), ..base });
                all.push(Rope { slots, cache: Some(spec(cache, &[3, 4, 2, 64])), dims: 32, ..base });
            }
        }
        let slots = Some(spec(I32, &[6]));
        all.push(Rope { slots, cache: Some(spec(BF16, &[9, 2, 64])), ..plain(BF16, 6, 2, 64) });
        all.push(Rope { slots, cache: Some(strided(F16, &[9, 2, 64], &[64, 576, 1])), ..plain(F16, 6, 2, 64) });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn plain(tokens: usize, d: usize) -> Rope {
        Rope::new(spec(DType::F32, &[tokens, 1, d]), spec(DType::I32, &[tokens]))
    }

    #[test]
    fn cases_hold() {
        check_cases::<Rope>();
    }

    #[test]
    fn pairs_and_the_tail() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let (s0, c0) = 3f64.sin_cos();
        let (s1, c1) = (3.0 * 10000f64.powf(-0.5)).sin_cos();
        let op = Rope { dims: 4, ..plain(1, 6) };
        let adjacent = compute(op, &[("x", &x), ("positions", &[3.0])]);
        let want = [c0 - 2.0 * s0, s0 + 2.0 * c0, 3.0 * c1 - 4.0 * s1, 3.0 * s1 + 4.0 * c1, 5.0, 6.0];
        assert_close(&adjacent.of("x").data, &want);
        let half = compute(Rope { style: RopeStyle::Half, ..op }, &[("x", &x), ("positions", &[3.0])]);
        let want = [c0 - 3.0 * s0, 2.0 * c1 - 4.0 * s1, s0 + 3.0 * c0, 2.0 * s1 + 4.0 * c1, 5.0, 6.0];
        assert_close(&half.of("x").data, &want);
        assert_eq!(half.of("x").magnitude[4..], [0.0, 0.0], "the tail is exact");
    }

    #[test]
    fn position_zero_is_the_identity_and_lengths_stay() {
        let x = normal(3 * 64, 1);
        let op = plain(3, 64);
        assert_close(&compute(op, &[("x", &x)]).of("x").data, &x);
        let far = compute(op, &[("x", &x), ("positions", &[131071.0, -5.0, 1.0])]);
        let squares = |v: &[f64]| v.chunks(64).map(|r| r.iter().map(|x| x * x).sum()).collect::<Vec<f64>>();
        assert_close(&squares(&far.of("x").data), &squares(&x));
    }

    #[test]
    fn scores_depend_on_distance_only() {
        let (q, k) = (normal(64, 1), normal(64, 2));
        let score = |p: f64, j: f64| {
            let got = compute(plain(2, 64), &[("x", &[q.as_slice(), &k].concat()), ("positions", &[p, j])]);
            let (a, b) = got.of("x").data.split_at(64);
            a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()
        };
        assert_close(&[score(131071.0, 131061.0)], &[score(10.0, 0.0)]);
    }

    #[test]
    fn rescaled_frequencies() {
        let base = plain(1, 64).frequencies();
        assert_close(&[base[0], base[16]], &[1.0, 0.01]);
        let linear = Rope { scaling: RopeScaling::Linear, factor: 4.0.into(), ..plain(1, 64) };
        assert_close(&linear.frequencies(), &base.iter().map(|f| f / 4.0).collect::<Vec<_>>());
        assert_eq!(linear.amplitude(), 1.0);

        let llama3 = Rope { scaling: RopeScaling::Llama3, factor: 8.0.into(), ..plain(1, 64) };
        let tau = std::f64::consts::TAU;
        for (got, plain) in llama3.frequencies().into_iter().zip(&base) {
            // the published definition, by wavelengths
            let wavelength = tau / plain;
            let smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
            let want = match wavelength {
                w if w < 8192.0 / 4.0 => *plain,
                w if w > 8192.0 => plain / 8.0,
                _ => (1.0 - smooth) * plain / 8.0 + smooth * plain,
            };
            assert_close(&[got * 1e4], &[want * 1e4]);
        }

        // dims 64, theta 1e4, 4096 positions: c(32) = 64 ln(4096 / 201.06) / 18.42 = 10.47, c(1) = 22.51
        let yarn = Rope { scaling: RopeScaling::Yarn, factor: 4.0.into(), high: 32.0.into(), original: 4096, ..plain(1, 64) };
        let ratio: Vec<f64> = yarn.frequencies().iter().zip(&base).map(|(f, b)| f / b).collect();
        assert_close(&ratio[..=10], &[1.0; 11]);
        assert_close(&ratio[23..], &[0.25; 9]);
        assert_close(&[ratio[11]], &[1.0 - 0.75 / 13.0]);
        assert_close(&[yarn.amplitude()], &[0.1 * 4f64.ln() + 1.0]);
        assert_eq!(Rope { attention: 2.0.into(), ..yarn }.amplitude(), 2.0);
        assert_eq!(Rope { factor: 0.5.into(), ..yarn }.amplitude(), 1.0);
    }

    #[test]
    fn factors_divide() {
        let op = Rope { factors: Some(spec(DType::F32, &[1])), ..plain(1, 2) };
        let got = compute(op, &[("x", &[1.0, 0.0]), ("positions", &[6.0]), ("factors", &[3.0])]);
        assert_close(&got.of("x").data, &[2f64.cos(), 2f64.sin()]);
    }

    #[test]
    fn the_cache_gets_the_rotated_rows() {
        let (slots, cache) = (Some(spec(DType::I32, &[3])), Some(spec(DType::F16, &[2, 2, 1, 2])));
        let op = Rope { slots, cache, ..plain(3, 2) };
        let x = [1.0, 0.0, 2.0, 0.0, 3.0, 0.0];
        let given: &[(&str, &[f64])] = &[
            ("x", &x), ("positions", &[1.0, 2.0, 3.0]), ("slots", &[2.0, 9.0, 0.0]), ("cache", &[7.0; 8]),
        ];
        let got = compute(op, given);
        let (x, cache) = (&got.of("x").data, got.of("cache"));
        assert_eq!(cache.data, [x[4], x[5], 7.0, 7.0, x[0], x[1], 7.0, 7.0]);
        assert_eq!(cache.magnitude[2..4], [0.0, 0.0], "rows no slot names keep their bytes");
    }

    #[test]
    fn refusals() {
        let op = plain(2, 8);
        assert_refused(plain(2, 7), "even");
        assert_refused(Rope { dims: 10, ..op }, "at most");
        assert_refused(Rope { dims: usize::MAX, ..op }, "dims");
        assert_refused(Rope { positions: spec(DType::I32, &[3]), ..op }, "positions");
        assert_refused(Rope { cache: Some(spec(DType::F32, &[4, 1, 8])), ..op }, "together");
        assert_refused(Rope { factor: 2.0.into(), ..op }, "scaling");
        assert_refused(Rope { theta: 0.0.into(), ..op }, "positive");
        let yarn = Rope { scaling: RopeScaling::Yarn, ..op };
        assert_refused(Rope { theta: 1.0.into(), ..yarn }, "theta > 1");
        assert_refused(Rope { high: 1.0.into(), ..yarn }, "low < high");
        assert_refused(Rope { original: 0, ..yarn }, "original");
    }
}
