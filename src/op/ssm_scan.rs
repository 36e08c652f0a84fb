//! Mamba-2's state-space recurrence (SSD), for prefill and for the single step.
//!
//! Per batch, head `h` (group `g = h / (heads / groups)`) and time: `dt' = dt + dt_bias[h]`, through softplus where `softplus`;
//! `state[p, n] = exp(dt' * a[h]) * state[p, n] + dt' * b[t, g, n] * x[t, h, p]`; `out[t, h, p] = sum_n c[t, g, n] * state[p, n] + d[h] * x[t, h, p]`.
//!
//! - `a` holds `-exp(A_log)`: negative numbers. State in f32, carried in and out through `state`; without it, zero and dropped.
//! - `t = 0` leaves the state alone. Kernels may compute in chunks of any length; the bound is the same.
//! - The magnitude that errors are relative to is the same recurrence over absolute values, with room for decays taken from
//!   differences of running sums of `dt' a` within a chunk.
//! - Any size is legal: `dt' a` from 0 (the state stays) down to -inf in f32 (it is forgotten, and `dt' b x` alone remains), each step
//!   by itself. What models do not have, `dt' a > 0`, grows, and is right as long as every step's `exp(dt' a)` is below e^88 and every
//!   element of the state within f32.
//! - NaN or infinity in an input, an infinite `dt'`, and growth beyond that spoil their head (`b` and `c`: the heads of their group) in their
//!   sequence: which elements of it hold what is not said, earlier ones included. Other heads and sequences keep their bits.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// Selective state-space scan with a scalar decay per head: see the [module](self).
    SsmScan = "ssm_scan";
    operands {
        /// `[batch, t, heads, p]`
        x: In,
        /// `[batch, t, heads]`
        dt: In,
        /// f32 `[heads]`
        a: In,
        /// `[batch, t, groups, n]`
        b: In,
        /// `[batch, t, groups, n]`
        c: In,
        /// `[batch, t, heads, p]`
        out: Out,
    }
    optional {
        /// f32 `[heads]`
        d: In,
        /// f32 `[heads]`
        dt_bias: In,
        /// f32 `[batch, heads, p, n]`
        state: InOut,
    }
    fields {
        /// Passes dt through softplus.
        softplus: bool = false,
    }
}

/// One element of a scan's state, with what its errors are relative to. Mamba-1 and Mamba-2 share it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cell {
    pub value: f64,
    magnitude: f64,
    exponents: f64, // sum of |dt a| so far
}

impl Cell {
    pub(crate) fn new(value: f64) -> Cell {
        Cell { value, magnitude: value.abs(), exponents: 0.0 }
    }

    /// `state = exp(dt a) state + dt input`
    pub(crate) fn step(&mut self, a: f64, dt: TimeStep, input: f64) {
        let decay = (dt.value * a).exp();
        self.value = decay * self.value + dt.value * input;
        self.magnitude = decay * self.magnitude + dt.magnitude * input.abs();
        self.exponents += dt.magnitude * a.abs();
    }

    /// The recurrence over absolute values; decays taken from differences of running sums err by a rounding of the sum.
    pub(crate) fn magnitude(&self) -> f64 {
        self.magnitude * (1.0 + self.exponents / 4.0)
    }
}

/// `dt'`, with what its errors are relative to.
#[derive(Clone, Copy)]
pub(crate) struct TimeStep {
    value: f64,
    magnitude: f64,
}

impl TimeStep {
    pub(crate) fn new(dt: f64, bias: f64, softplus: bool) -> TimeStep {
        let (sum, magnitude) = (dt + bias, dt.abs() + bias.abs());
        if !softplus {
            return TimeStep { value: sum, magnitude };
        }
        let (value, slope) = (math::softplus(sum), 1.0 / (1.0 + (-sum).exp()));
        TimeStep { value, magnitude: value + slope * magnitude }
    }
}

/// The bound of a scan of `t` steps over `n` states: the sum over states, a few roundings for each step.
pub(crate) fn scan_bound(t: usize, n: usize) -> Bound {
    let steps = (8.0 + 4.0 * (t as f64).sqrt()) * f32::EPSILON as f64;
    Bound::relative(Bound::dot(n).relative + steps)
}

/// Values of a scan's operand: decays and time steps of the sizes models have, and no NaN, whose reach is not defined.
pub(crate) fn fill_scan(operand: &Operand, softplus: bool, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
    let one = |rng: &mut Rng| match operand.name {
        "a" => -0.1 - 4.0 * rng.unit(),
        "dt" if softplus => rng.normal() - 2.0,
        "dt_bias" if softplus => 0.5 * rng.normal(),
        "dt" => 0.002 + 0.2 * rng.unit(),
        "dt_bias" => 0.02 * rng.unit(),
        _ => rng.value(if fill == Fill::Special { Fill::Normal } else { fill }),
    };
    Some((0..operand.spec.numel()).map(|_| one(rng) as f32 as f64).collect())
}

impl SsmScan {
    /// `(batch, t, heads, p, groups, n)`
    pub fn dims(&self) -> (usize, usize, usize, usize, usize, usize) {
        let (x, b) = (&self.x, &self.b);
        (x.dim(3), x.dim(2), x.dim(1), x.dim(0), b.dim(1), b.dim(0))
    }
}

impl Semantics for SsmScan {
    fn check(&self) -> Result<(), String> {
        ensure!(self.x.rank() == 4 && self.b.rank() == 4, "x must be [batch, t, heads, p], b [batch, t, groups, n]");
        let (batch, t, heads, p, groups, n) = self.dims();
        ensure!(
            heads == 0 || (groups > 0 && heads % groups == 0),
            "{heads} heads are not a multiple of {groups} groups"
        );
        for o in &self.operands() {
            let (want, single): (&[usize], bool) = match o.name {
                "x" | "out" => (&[batch, t, heads, p], false),
                "dt" => (&[batch, t, heads], false),
                "b" | "c" => (&[batch, t, groups, n], false),
                "state" => (&[batch, heads, p, n], true),
                _ => (&[heads], true),
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
        f.set(Features::SOFTPLUS, self.softplus);
        f
    }

    fn flops(&self) -> u64 {
        let n = self.b.dim(0) as u64;
        (self.x.numel() as u64).saturating_mul(n.saturating_mul(5).saturating_add(2))
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (batch, t, heads, p, groups, n) = self.dims();
        if t == 0 {
            return;
        }
        let (mut out, mut out_mag) = (vec![0.0; self.out.numel()], vec![0.0; self.out.numel()]);
        let (mut state, mut state_mag) = (Vec::new(), Vec::new());
        let per_head = |name: &str, h: usize| arrays.get(name).map_or(0.0, |v| v.data[h]);
        for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
            let (a, d, dt_bias) = (arrays.of("a").data[h], per_head("d", h), per_head("dt_bias", h));
            for lane in 0..p {
                let first = ((b * heads + h) * p + lane) * n;
                let mut cells: Vec<Cell> = match arrays.get("state") {
                    Some(s) => s.data[first..first + n].iter().map(|&v| Cell::new(v)).collect(),
                    None => vec![Cell::default(); n],
                };
                for row in b * t..(b + 1) * t {
                    let dt = TimeStep::new(arrays.of("dt").data[row * heads + h], dt_bias, self.softplus);
                    let at = (row * heads + h) * p + lane;
                    let x = arrays.of("x").data[at];
                    let group = row * groups + h / (heads / groups);
                    (out[at], out_mag[at]) = (d * x, (d * x).abs());
                    for ((cell, &b), &c) in cells.iter_mut().zip(arrays.of("b").row(group)).zip(arrays.of("c").row(group)) {
                        cell.step(a, dt, b * x);
                        out[at] += c * cell.value;
                        out_mag[at] += c.abs() * cell.magnitude();
                    }
                }
                state.extend(cells.iter().map(|c| c.value));
                state_mag.extend(cells.iter().map(Cell::magnitude));
            }
        }
        arrays.set_with("out", out, out_mag);
        if self.state.is_some() {
            arrays.set_with("state", state, state_mag);
        }
    }

    fn bound(&self, _output: &str) -> Bound {
        scan_bound(self.x.dim(2), self.b.dim(0))
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        fill_scan(operand, self.softplus, fill, rng)
    }

    fn class(&self) -> Self {
        let (batch, t, heads, p, groups, n) = self.dims();
        let rows = class_rows(t);
        let long = |s: &Spec, rest: &[usize]| Spec::new(s.dtype(), &[&[batch, rows], rest].concat());
        let build = || -> crate::Result<Self> {
            Ok(SsmScan {
                x: long(&self.x, &[heads, p])?,
                out: long(&self.out, &[heads, p])?,
                dt: long(&self.dt, &[heads])?,
                b: long(&self.b, &[groups, n])?,
                c: long(&self.c, &[groups, n])?,
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
        let plain = |dtype, [batch, t, heads, p, groups, n]: [usize; 6]| {
            let (x, dt) = (spec(dtype, &[batch, t, heads, p]), spec(dtype, &[batch, t, heads]));
            let b = spec(dtype, &[batch, t, groups, n]);
            SsmScan::new(x, dt, spec(F32, &[heads]), b, b, x)
        };
        let mut all = Vec::new();
        for size in [
            [1, 1, 1, 1, 1, 1], [0, 3, 2, 4, 1, 8], [2, 0, 2, 4, 1, 8], [2, 3, 0, 4, 1, 8], [1, 3, 2, 0, 1, 8], [1, 3, 2, 4, 1, 0],
            [2, 7, 3, 5, 3, 11], [1, 1, 4, 16, 1, 32], [1, 65, 2, 8, 1, 16], [1, 131, 1, 4, 1, 16], [3, 17, 4, 8, 2, 16], [1, 9, 1, 64, 1, 128],
        ] {
            let base = plain(F32, size);
            let [batch, _, heads, p, _, n] = size;
            all.extend([base, SsmScan { state: Some(spec(F32, &[batch, heads, p, n])), ..base }]);
        }
        for t in [1, 19] {
            let size = [2, t, 4, 8, 2, 16];
            let (heads, state) = (Some(spec(F32, &[4])), Some(spec(F32, &[2, 4, 8, 16])));
            let base = plain(F32, size);
            all.push(SsmScan { d: heads, ..base });
            all.push(SsmScan { dt_bias: heads, ..base });
            all.push(SsmScan { softplus: true, ..base });
            let full = |base| SsmScan { d: heads, dt_bias: heads, softplus: true, state, ..base };
            all.push(full(base));
            for dtype in [F16, BF16] {
                all.push(full(plain(dtype, size)));
                all.push(SsmScan { out: spec(F32, &[2, t, 4, 8]), dt: spec(F32, &[2, t, 4]), ..full(plain(dtype, size)) });
            }
            // slices of one fused row x | b | c | dt; a state with gaps
            let fused = |a: usize, b: usize| strided(&[2, t, a, b], &[t * 128, 128, b, 1]);
            let mut slices = SsmScan { x: fused(4, 8), b: fused(2, 16), c: fused(2, 16), ..full(base) };
            slices.dt = strided(&[2, t, 4], &[t * 128, 128, 1]);
            all.push(slices);
            all.push(SsmScan { state: Some(strided(&[2, 4, 8, 16], &[1024, 256, 1, 8])), ..full(base) });
            all.push(SsmScan { determinism: Determinism::ThreadCount, ..full(base) });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn plain(t: usize, heads: usize, p: usize, groups: usize, n: usize) -> SsmScan {
        let x = spec(DType::F32, &[1, t, heads, p]);
        let b = spec(DType::F32, &[1, t, groups, n]);
        let state = Some(spec(DType::F32, &[1, heads, p, n]));
        SsmScan { state, ..SsmScan::new(x, spec(DType::F32, &[1, t, heads]), spec(DType::F32, &[heads]), b, b, x) }
    }

    #[test]
    fn cases_hold() {
        check_cases::<SsmScan>();
    }

    #[test]
    fn two_steps_by_hand() {
        let one = Some(spec(DType::F32, &[1]));
        let op = SsmScan { d: one, dt_bias: one, ..plain(2, 1, 1, 1, 1) };
        let given: &[(&str, &[f64])] = &[
            ("x", &[2.0, 3.0]), ("dt", &[0.25, 0.75]), ("dt_bias", &[0.25]), ("a", &[-1.0]), ("b", &[5.0, 7.0]), ("c", &[11.0, 13.0]),
            ("d", &[100.0]), ("state", &[1.0]),
        ];
        let got = compute(op, given);
        let first = (-0.5f64).exp() + 0.5 * 10.0;
        let second = (-1f64).exp() * first + 21.0;
        assert_close(&got.of("out").data, &[11.0 * first + 200.0, 13.0 * second + 300.0]);
        assert_close(&got.of("state").data, &[second]);
        let soft = compute(SsmScan { softplus: true, ..op }, given);
        let dt = [0.5, 1.0].map(|v: f64| v.exp().ln_1p());
        let first = (-dt[0]).exp() + dt[0] * 10.0;
        assert_close(&soft.of("state").data, &[(-dt[1]).exp() * first + dt[1] * 21.0]);
    }

    #[test]
    fn two_calls_equal_one() {
        let op = |t| plain(t, 4, 3, 2, 5);
        let all = filled(op(9), Fill::Normal, 7);
        let whole = {
            let mut arrays = all.clone();
            Op::from(op(9)).reference(&mut arrays).unwrap();
            arrays
        };
        for cut in [1, 4, 8] {
            let part = |name: &str, range: std::ops::Range<usize>| {
                let width = all.of(name).data.len() / 9;
                all.of(name).data[range.start * width..range.end * width].to_vec()
            };
            let run = |range: std::ops::Range<usize>, state: &[f64]| {
                let rows = ["x", "dt", "b", "c"].map(|name| (name, part(name, range.clone())));
                let mut given: Vec<(&str, &[f64])> = rows.iter().map(|(name, v)| (*name, v.as_slice())).collect();
                given.extend([("a", all.of("a").data.as_slice()), ("state", state)]);
                compute(op(range.len()), &given)
            };
            let first = run(0..cut, &all.of("state").data);
            let second = run(cut..9, &first.of("state").data);
            assert_close(&[first.of("out").data.as_slice(), &second.of("out").data].concat(), &whole.of("out").data);
            assert_close(&second.of("state").data, &whole.of("state").data);
        }
    }

    #[test]
    fn groups_share_b_and_c_and_no_state_is_a_zero_state() {
        let all = filled(plain(3, 4, 2, 2, 3), Fill::Normal, 5);
        let rows = |name: &str, heads: usize| -> Vec<f64> {
            let repeat = |row: &[f64]| row.chunks(3).flat_map(|g| g.repeat(heads / 2)).collect::<Vec<f64>>();
            all.of(name).data.chunks(6).flat_map(repeat).collect()
        };
        let given = |b: &[f64], c: &[f64], op: SsmScan| {
            compute(op, &[("x", &all.of("x").data), ("dt", &all.of("dt").data), ("a", &all.of("a").data), ("b", b), ("c", c)])
        };
        let grouped = given(&rows("b", 2), &rows("c", 2), plain(3, 4, 2, 2, 3));
        let full = given(&rows("b", 4), &rows("c", 4), plain(3, 4, 2, 4, 3));
        assert_close(&grouped.of("out").data, &full.of("out").data);
        let stateless = given(&rows("b", 2), &rows("c", 2), SsmScan { state: None, ..plain(3, 4, 2, 2, 3) });
        assert_eq!(stateless.of("out").data, grouped.of("out").data);
    }

    #[test]
    fn no_time_leaves_the_state() {
        let got = compute(plain(0, 1, 1, 1, 2), &[("state", &[3.0, 4.0])]);
        assert_eq!(got.of("state").data, [3.0, 4.0]);
    }

    #[test]
    fn refusals() {
        let op = plain(2, 4, 3, 2, 5);
        assert_refused(plain(2, 4, 3, 3, 5), "multiple");
        assert_refused(plain(2, 4, 3, 0, 5), "multiple");
        assert_refused(SsmScan { a: spec(DType::F16, &[4]), ..op }, "a is f16");
        assert_refused(SsmScan { dt: spec(DType::F32, &[1, 2, 3]), ..op }, "dt must be");
        assert_refused(SsmScan { c: spec(DType::F32, &[1, 2, 2, 6]), ..op }, "c must be");
        assert_refused(SsmScan { state: Some(spec(DType::F32, &[1, 4, 5, 3])), ..op }, "state must be");
    }
}
