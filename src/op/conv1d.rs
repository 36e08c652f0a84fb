//! Causal depthwise convolution along time with a carried state: Mamba's short convolution.
//!
//! `out[b, t, c] = act(bias[c] + sum_i w[c, i] * x'[b, t - (taps - 1) + i, c])`, where `x'` is the state's `taps - 1` rows followed by `x`; without
//! `state` the past is zero. After the call `state` holds the last `taps - 1` rows of `x'`, oldest first. `t = 1` is the decode step.
//! Taps 2 to 8. `t = 0` leaves the state alone. `out` may be `x` where `t = 1`.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// Causal depthwise convolution with state: see the [module](self).
    Conv1d = "conv1d";
    operands {
        /// `[batch, t, channels]`
        x: In,
        /// `[channels, taps]`
        w: Weight,
        /// `[batch, t, channels]`
        out: Out,
    }
    optional {
        /// `[channels]`
        bias: In,
        /// f32 `[batch, taps - 1, channels]`
        state: InOut,
    }
    fields {
        /// Applied last.
        act: Activation = Activation::None,
    }
}

impl Conv1d {
    /// `(batch, t, channels, taps)`
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        (self.x.dim(2), self.x.dim(1), self.x.dim(0), self.w.dim(0))
    }
}

impl Semantics for Conv1d {
    fn check(&self) -> Result<(), String> {
        ensure!(self.x.rank() == 3 && self.w.rank() == 2, "x must be [batch, t, channels] and w [channels, taps]");
        let (batch, _, channels, taps) = self.dims();
        ensure!((2..=8).contains(&taps), "{taps} taps, must be 2 to 8");
        for o in self.operands().iter().filter(|o| o.name != "state") {
            ensure!(o.spec.dtype().is_float(), "{} is {}, must be f32, f16 or bf16", o.name, o.spec.dtype());
        }
        ensure!(self.w.dim(1) == channels, "w must be [{channels}, taps]");
        ensure!(self.out.shape() == self.x.shape(), "out must have x's shape");
        ensure!(self.bias.is_none_or(|b| b.shape() == [channels]), "bias must be [{channels}]");
        if let Some(s) = &self.state {
            let shape = [batch, taps - 1, channels];
            ensure!(s.dtype() == DType::F32 && s.shape() == shape, "state must be f32 {shape:?}");
        }
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::BIAS, self.bias.is_some());
        f.set(Features::ACTIVATION, self.act != Activation::None);
        f.set(Features::STATE, self.state.is_some());
        f
    }

    fn flops(&self) -> u64 {
        (self.x.numel() as u64).saturating_mul(2 * self.w.dim(0) as u64)
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (batch, t, channels, taps) = self.dims();
        let (w, bias) = (&arrays.of("w").data, arrays.get("bias").map(|b| &b.data));
        let (mut out, mut magnitude) = (Vec::new(), Vec::new());
        let mut state = Vec::new();
        for b in 0..batch {
            let before = (taps - 1) * channels;
            let mut past = arrays.get("state").map_or(vec![0.0; before], |s| s.data[b * before..][..before].to_vec());
            past.extend_from_slice(&arrays.of("x").data[b * t * channels..][..t * channels]);
            for (i, c) in (0..t).flat_map(|i| (0..channels).map(move |c| (i, c))) {
                let start = bias.map_or(0.0, |b| b[c]);
                let (sum, abs) = (0..taps).fold((start, start.abs()), |(sum, abs), tap| {
                    let product = w[c * taps + tap] * past[(i + tap) * channels + c];
                    (sum + product, abs + product.abs())
                });
                out.push(self.act.apply(sum));
                magnitude.push(abs);
            }
            state.extend_from_slice(&past[t * channels..]);
        }
        arrays.set_with("out", out, magnitude);
        if self.state.is_some() {
            arrays.set("state", state);
        }
    }

    fn bound(&self, output: &str) -> Bound {
        match output {
            "state" => Bound::EXACT, // rows of x, or what it held
            // The sum, and the activation's roundings and slope.
            _ => Bound::relative(Bound::dot(self.w.dim(0) + 1).relative + 8.0 * f32::EPSILON as f64),
        }
    }

    fn may_alias(&self, out: &str, input: &str) -> bool {
        out == "out" && input == "x" && self.x.dim(1) == 1
    }

    fn class(&self) -> Self {
        let (batch, t, channels, _) = self.dims();
        let long = |s: &Spec| Spec::new(s.dtype(), &[batch, class_rows(t), channels]);
        let build = || -> crate::Result<Self> {
            Ok(Conv1d {
                x: long(&self.x)?,
                out: long(&self.out)?,
                w: self.w.dense(),
                bias: self.bias.map(|s| s.dense()),
                state: self.state.map(|s| s.dense()),
                ..*self
            })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let plain = |x, w, batch, t, channels, taps| {
            let rows = spec(x, &[batch, t, channels]);
            Conv1d::new(rows, spec(w, &[channels, taps]), rows)
        };
        let mut all = Vec::new();
        for (batch, t, channels, taps) in
            [(1, 1, 1, 2), (0, 3, 8, 4), (2, 0, 8, 4), (2, 3, 0, 4), (1, 2, 7, 8), (2, 9, 33, 4), (1, 17, 64, 3), (3, 1, 130, 4)]
        {
            let base = plain(F32, F32, batch, t, channels, taps);
            let state = Some(spec(F32, &[batch, taps - 1, channels]));
            all.extend([base, Conv1d { state, ..base }]);
        }
        for taps in [2, 5, 6, 7, 8] {
            all.push(Conv1d { state: Some(spec(F32, &[2, taps - 1, 20])), ..plain(F32, F32, 2, 11, 20, taps) });
        }
        for t in [1, 6] {
            let base = plain(F32, F32, 2, t, 40, 4);
            let (bias, state) = (Some(spec(F32, &[40])), Some(spec(F32, &[2, 3, 40])));
            all.push(Conv1d { bias, ..base });
            all.extend(Activation::ALL.iter().filter(|a| **a != Activation::None).map(|&act| Conv1d { act, ..base }));
            all.push(Conv1d { bias, state, act: Activation::Silu, ..base });
            for (x, w) in [(F16, F16), (BF16, BF16), (F32, BF16), (BF16, F32)] {
                all.push(Conv1d { bias: Some(spec(w, &[40])), state, act: Activation::Silu, ..plain(x, w, 2, t, 40, 4) });
            }
            // columns of a wider row, time innermost, weights by tap
            let slice = strided(F32, &[2, t, 40], &[t * 96, 96, 1]);
            all.push(Conv1d { x: slice, out: slice, state, ..base });
            all.push(Conv1d { x: strided(F32, &[2, t, 40], &[t * 40, 1, t]), state, ..base });
            all.push(Conv1d { w: strided(F32, &[40, 4], &[1, 40]), state: Some(strided(F32, &[2, 3, 40], &[120, 1, 3])), ..base });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn plain(t: usize, channels: usize, taps: usize) -> Conv1d {
        let x = spec(DType::F32, &[1, t, channels]);
        let state = Some(spec(DType::F32, &[1, taps - 1, channels]));
        Conv1d { state, ..Conv1d::new(x, spec(DType::F32, &[channels, taps]), x) }
    }

    #[test]
    fn cases_hold() {
        check_cases::<Conv1d>();
    }

    #[test]
    fn the_last_tap_meets_the_present() {
        let w = [100.0, 10.0, 1.0];
        let op = Conv1d { bias: Some(spec(DType::F32, &[1])), ..plain(3, 1, 3) };
        let got = compute(op, &[("x", &[1.0, 2.0, 3.0]), ("w", &w), ("bias", &[0.5]), ("state", &[8.0, 9.0])]);
        assert_eq!(got.of("out").data, [891.5, 912.5, 123.5]);
        assert_eq!(got.of("state").data, [2.0, 3.0]);
        let stateless = compute(Conv1d { state: None, ..plain(3, 1, 3) }, &[("x", &[1.0, 2.0, 3.0]), ("w", &w)]);
        assert_eq!(stateless.of("out").data, [1.0, 12.0, 123.0]);
    }

    #[test]
    fn a_step_moves_the_state_by_one_row() {
        let got = compute(plain(1, 2, 4), &[("x", &[7.0, 8.0]), ("state", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]);
        assert_eq!(got.of("state").data, [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let none = compute(plain(0, 2, 4), &[("state", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]);
        assert_eq!(none.of("state").data, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn two_calls_equal_one() {
        let (x, w, state) = (normal(7 * 3, 1), normal(3 * 4, 2), normal(3 * 3, 3));
        let act = |op| Conv1d { act: Activation::Silu, ..op };
        let whole = compute(act(plain(7, 3, 4)), &[("x", &x), ("w", &w), ("state", &state)]);
        for cut in [1, 2, 5] {
            let first = compute(act(plain(cut, 3, 4)), &[("x", &x[..cut * 3]), ("w", &w), ("state", &state)]);
            let carried = &first.of("state").data;
            let second = compute(act(plain(7 - cut, 3, 4)), &[("x", &x[cut * 3..]), ("w", &w), ("state", carried)]);
            assert_close(&[first.of("out").data.as_slice(), &second.of("out").data].concat(), &whole.of("out").data);
            assert_eq!(second.of("state").data, whole.of("state").data);
        }
    }

    #[test]
    fn aliases_for_a_single_step_only() {
        assert!(plain(1, 2, 4).may_alias("out", "x"));
        assert!(!plain(2, 2, 4).may_alias("out", "x"));
        assert!(!plain(1, 2, 4).may_alias("state", "x"));
    }

    #[test]
    fn refusals() {
        let op = plain(3, 2, 4);
        assert_refused(Conv1d { w: spec(DType::F32, &[2, 9]), ..op }, "taps");
        assert_refused(Conv1d { w: spec(DType::F32, &[2, 1]), ..op }, "taps");
        assert_refused(Conv1d { w: spec(DType::F32, &[3, 4]), ..op }, "w must be");
        assert_refused(Conv1d { state: Some(spec(DType::F32, &[1, 4, 2])), ..op }, "state");
        assert_refused(Conv1d { state: Some(spec(DType::F16, &[1, 3, 2])), ..op }, "state");
        assert_refused(Conv1d { bias: Some(spec(DType::F32, &[3])), ..op }, "bias");
        assert_refused(Conv1d { out: spec(DType::F32, &[1, 3, 3]), ..op }, "out");
    }
}
