//! Mamba-1's selective scan: a decay per channel and state.
//!
//! `dt' = dt + dt_bias[c]`, through softplus where `softplus`; `state[c, n] = exp(dt' a[c, n]) state[c, n] + dt' b[t, n] x[t, c]`;
//! `out[t, c] = (sum_n c[t, n] state[c, n] + d[c] x[t, c]) * silu(z[t, c])` (the last factor where `z` is given).
//!
//! - `a` holds `-exp(A_log)`: negative numbers. State in f32, carried in and out through `state`; without it, zero and dropped.
//! - `t = 0` leaves the state alone. Errors are relative to the same recurrence over absolute values, as in
//!   [`super::ssm_scan`]; so are sizes of `dt' a`, and what NaN, infinity and growth spoil, by channel (`b` and `c`: all of their sequence).

use super::{
    ssm_scan::{Cell, TimeStep, fill_scan, scan_bound},
    *,
};
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// Selective state-space scan with a decay per channel and state: see the [module](self).
    SelectiveScan = "selective_scan";
    operands {
        /// `[batch, t, channels]`
        x: In,
        /// `[batch, t, channels]`
        dt: In,
        /// f32 `[channels, n]`
        a: In,
        /// `[batch, t, n]`
        b: In,
        /// `[batch, t, n]`
        c: In,
        /// `[batch, t, channels]`
        out: Out,
    }
    optional {
        /// f32 `[channels]`
        d: In,
        /// f32 `[channels]`
        dt_bias: In,
        /// `[batch, t, channels]`
        z: In,
        /// f32 `[batch, channels, n]`
        state: InOut,
    }
    fields {
        /// Passes dt through softplus.
        softplus: bool = false,
    }
}

impl SelectiveScan {
    /// `(batch, t, channels, n)`
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        (self.x.dim(2), self.x.dim(1), self.x.dim(0), self.a.dim(0))
    }
}

impl Semantics for SelectiveScan {
    fn check(&self) -> Result<(), String> {
        ensure!(self.x.rank() == 3 && self.a.rank() == 2, "x must be [batch, t, channels] and a [channels, n]");
        let (batch, t, channels, n) = self.dims();
        for o in &self.operands() {
            let (want, single): (&[usize], bool) = match o.name {
                "x" | "dt" | "z" | "out" => (&[batch, t, channels], false),
                "b" | "c" => (&[batch, t, n], false),
                "a" => (&[channels, n], true),
                "state" => (&[batch, channels, n], true),
                _ => (&[channels], true),
            };
            ensure!(o.spec.shape() == want, "{} must be {want:?}", o.name);
            let fits = if single { o.spec.dtype() == DType::F32 } else { o.spec.dtype().is_float() };
            ensure!(fits, "{} is {}, must be {}", o.name, o.spec.dtype(), if single { "f32" } else { "f32, f16 or bf16" });
        }
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::STATE, self.state.is_some());
        f.set(Features::SKIP, self.d.is_some());
        f.set(Features::BIAS, self.dt_bias.is_some());
        f.set(Features::GATE, self.z.is_some());
        f.set(Features::SOFTPLUS, self.softplus);
        f
    }

    fn flops(&self) -> u64 {
        let n = self.a.dim(0) as u64;
        (self.x.numel() as u64).saturating_mul(n.saturating_mul(7).saturating_add(8))
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (batch, t, channels, n) = self.dims();
        if t == 0 {
            return;
        }
        let (mut out, mut out_mag) = (vec![0.0; self.out.numel()], vec![0.0; self.out.numel()]);
        let (mut state, mut state_mag) = (Vec::new(), Vec::new());
        let of_channel = |name: &str, c: usize| arrays.get(name).map_or(0.0, |v| v.data[c]);
        for (b, channel) in (0..batch).flat_map(|b| (0..channels).map(move |c| (b, c))) {
            let (d, dt_bias) = (of_channel("d", channel), of_channel("dt_bias", channel));
            let mut cells: Vec<Cell> = match arrays.get("state") {
                Some(s) => s.row(b * channels + channel).iter().map(|&v| Cell::new(v)).collect(),
                None => vec![Cell::default(); n],
            };
            for row in b * t..(b + 1) * t {
                let at = row * channels + channel;
                let dt = TimeStep::new(arrays.of("dt").data[at], dt_bias, self.softplus);
                let x = arrays.of("x").data[at];
                let (mut y, mut mag) = (d * x, (d * x).abs());
                let (a, bs, cs) = (arrays.of("a").row(channel), arrays.of("b").row(row), arrays.of("c").row(row));
                for (cell, ((a, b), c)) in cells.iter_mut().zip(a.iter().zip(bs).zip(cs)) {
                    cell.step(*a, dt, b * x);
                    y += c * cell.value;
                    mag += c.abs() * cell.magnitude();
                }
                if let Some(z) = arrays.get("z") {
                    let silu = Activation::Silu.apply(z.data[at]);
                    y *= silu;
                    mag *= silu.abs() * (1.0 + z.data[at].abs()); // exp's condition number is |z|
                }
                (out[at], out_mag[at]) = (y, mag);
            }
            state.extend(cells.iter().map(|c| c.value));
            state_mag.extend(cells.iter().map(Cell::magnitude));
        }
        arrays.set_with("out", out, out_mag);
        if self.state.is_some() {
            arrays.set_with("state", state, state_mag);
        }
    }

    fn bound(&self, _output: &str) -> Bound {
        scan_bound(self.x.dim(1), self.a.dim(0))
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        fill_scan(operand, self.softplus, fill, rng)
    }

    fn class(&self) -> Self {
        let (batch, t, channels, n) = self.dims();
        let long = |s: &Spec, width: usize| Spec::new(s.dtype(), &[batch, class_rows(t), width]);
        let build = || -> crate::Result<Self> {
            Ok(SelectiveScan {
                x: long(&self.x, channels)?,
                dt: long(&self.dt, channels)?,
                out: long(&self.out, channels)?,
                z: self.z.map(|s| long(&s, channels)).transpose()?,
                b: long(&self.b, n)?,
                c: long(&self.c, n)?,
                a: self.a.dense(),
                d: self.d.map(|s| s.dense()),
                dt_bias: self.dt_bias.map(|s| s.dense()),
                state: self.state.map(|s| s.dense()),
                ..*self
            })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |s: &[usize], t: &[usize]| Spec::strided(F32, s, t).expect("a case's spec");
        let plain = |dtype, [batch, t, channels, n]: [usize; 4]| {
            let (x, b) = (spec(dtype, &[batch, t, channels]), spec(dtype, &[batch, t, n]));
            SelectiveScan::new(x, x, spec(F32, &[channels, n]), b, b, x)
        };
        let mut all = Vec::new();
        for size in [
            [1, 1, 1, 1], [0, 3, 4, 8], [2, 0, 4, 8], [2, 3, 0, 8], [2, 3, 4, 0], [1, 1, 96, 16], [2, 7, 33, 5], [1, 65, 12, 16], [1, 131, 7, 16], [3, 17, 16, 8],
        ] {
            let base = plain(F32, size);
            let [batch, _, channels, n] = size;
            all.extend([base, SelectiveScan { state: Some(spec(F32, &[batch, channels, n])), ..base }]);
        }
        for t in [1, 19] {
            let size = [2, t, 24, 16];
            let (row, state) = (Some(spec(F32, &[24])), Some(spec(F32, &[2, 24, 16])));
            let base = plain(F32, size);
            all.push(SelectiveScan { d: row, ..base });
            all.push(SelectiveScan { dt_bias: row, ..base });
            all.push(SelectiveScan { softplus: true, ..base });
            all.push(SelectiveScan { z: Some(base.x), ..base });
            let full = |base: SelectiveScan| {
                SelectiveScan { d: row, dt_bias: row, softplus: true, state, z: Some(base.x), ..base }
            };
            all.push(full(base));
            for dtype in [F16, BF16] {
                all.push(full(plain(dtype, size)));
                all.push(SelectiveScan { out: spec(F32, &[2, t, 24]), ..full(plain(dtype, size)) });
            }
            let fused = |width: usize| strided(&[2, t, width], &[t * 128, 128, 1]);
            all.push(SelectiveScan { x: fused(24), b: fused(16), c: fused(16), z: Some(fused(24)), ..full(base) });
            let by_channel = strided(&[2, t, 24], &[t * 24, 1, t]);
            all.push(SelectiveScan { x: by_channel, dt: by_channel, out: by_channel, ..full(base) });
            all.push(SelectiveScan { a: strided(&[24, 16], &[0, 1]), state: Some(strided(&[2, 24, 16], &[384, 1, 24])), ..full(base) });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn plain(t: usize, channels: usize, n: usize) -> SelectiveScan {
        let s = |shape: &[usize]| spec(DType::F32, shape);
        let (x, b) = (s(&[1, t, channels]), s(&[1, t, n]));
        SelectiveScan { state: Some(s(&[1, channels, n])), ..SelectiveScan::new(x, x, s(&[channels, n]), b, b, x) }
    }

    #[test]
    fn cases_hold() {
        check_cases::<SelectiveScan>();
    }

    #[test]
    fn one_step_by_hand() {
        let row = Some(spec(DType::F32, &[1]));
        let op = SelectiveScan { d: row, dt_bias: row, z: Some(spec(DType::F32, &[1, 1, 1])), softplus: true, ..plain(1, 1, 2) };
        let given: &[(&str, &[f64])] = &[
            ("x", &[2.0]), ("dt", &[0.25]), ("dt_bias", &[0.5]), ("a", &[-1.0, -3.0]), ("b", &[5.0, 7.0]), ("c", &[11.0, 13.0]),
            ("d", &[100.0]), ("z", &[0.5]), ("state", &[1.0, 4.0]),
        ];
        let got = compute(op, given);
        let dt = 0.75f64.exp().ln_1p();
        let state = [(-dt).exp() + dt * 10.0, (-3.0 * dt).exp() * 4.0 + dt * 14.0];
        assert_close(&got.of("state").data, &state);
        let y = 11.0 * state[0] + 13.0 * state[1] + 200.0;
        assert_close(&got.of("out").data, &[y * Activation::Silu.apply(0.5)]);
    }

    #[test]
    fn two_calls_equal_one() {
        let all = filled(plain(9, 4, 3), Fill::Normal, 7);
        let mut whole = all.clone();
        Op::from(plain(9, 4, 3)).reference(&mut whole).unwrap();
        for cut in [1, 4, 8] {
            let run = |range: std::ops::Range<usize>, state: &[f64]| {
                let width = |name: &str| all.of(name).data.len() / 9;
                let mut given: Vec<(&str, &[f64])> = ["x", "dt", "b", "c"]
                    .map(|name| (name, &all.of(name).data[range.start * width(name)..range.end * width(name)]))
                    .to_vec();
                given.extend([("a", all.of("a").data.as_slice()), ("state", state)]);
                compute(plain(range.len(), 4, 3), &given)
            };
            let first = run(0..cut, &all.of("state").data);
            let second = run(cut..9, &first.of("state").data);
            assert_close(&[first.of("out").data.as_slice(), &second.of("out").data].concat(), &whole.of("out").data);
            assert_close(&second.of("state").data, &whole.of("state").data);
        }
    }

    #[test]
    fn equals_mamba_2_where_a_channel_has_one_decay() {
        let (x, b, c) = (normal(5 * 2, 1), normal(5 * 3, 2), normal(5 * 3, 3));
        let dt: Vec<f64> = normal(5 * 2, 4).iter().map(|v| v.abs()).collect();
        let selective = compute(plain(5, 2, 3), &[("x", &x), ("dt", &dt), ("a", &[-1.0, -1.0, -1.0, -0.5, -0.5, -0.5]), ("b", &b), ("c", &c)]);
        let s = |shape: &[usize]| spec(DType::F32, shape);
        let (heads, groups) = (s(&[1, 5, 2, 1]), s(&[1, 5, 1, 3]));
        let ssm = SsmScan::new(heads, s(&[1, 5, 2]), s(&[2]), groups, groups, heads);
        let ssm = compute(ssm, &[("x", &x), ("dt", &dt), ("a", &[-1.0, -0.5]), ("b", &b), ("c", &c)]);
        assert_close(&selective.of("out").data, &ssm.of("out").data);
    }

    #[test]
    fn no_time_leaves_the_state_and_no_state_is_a_zero_one() {
        assert_eq!(compute(plain(0, 1, 2), &[("state", &[3.0, 4.0])]).of("state").data, [3.0, 4.0]);
        let given: &[(&str, &[f64])] = &[("x", &[2.0]), ("dt", &[0.5]), ("a", &[-1.0]), ("b", &[3.0]), ("c", &[1.0])];
        let without = compute(SelectiveScan { state: None, ..plain(1, 1, 1) }, given);
        assert_eq!(without.of("out").data, compute(plain(1, 1, 1), given).of("out").data);
    }

    #[test]
    fn refusals() {
        let op = plain(2, 4, 3);
        assert_refused(SelectiveScan { a: spec(DType::F32, &[3, 3]), ..op }, "a must be");
        assert_refused(SelectiveScan { a: spec(DType::BF16, &[4, 3]), ..op }, "a is bf16");
        assert_refused(SelectiveScan { b: spec(DType::F32, &[1, 2, 4]), ..op }, "b must be");
        assert_refused(SelectiveScan { z: Some(spec(DType::I8, &[1, 2, 4])), ..op }, "z is i8");
        assert_refused(SelectiveScan { state: Some(spec(DType::F32, &[1, 3, 4])), ..op }, "state must be");
    }
}
