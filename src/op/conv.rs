//! General convolution in one, two or three dimensions: patch embedding, audio front ends, voxel grids.
//!
//! `out[b, o, p..] = act(bias[o] + sum w[o, i, r..] * x[b, g * cin/groups + i, p * stride + r * dilation - pad ..])`, zero
//! beyond the edges, where `g` is the group of `o`. `x` is `[batch, cin, spatial..]`, `w` `[cout, cin / groups, taps..]`,
//! `out` `[batch, cout, spatial'..]` with `spatial' = (spatial + 2 pad - dilation (taps - 1) - 1) / stride + 1` (rounded
//! down), 0 where the window does not fit. Stride, pad and dilation are the same in every dimension. At least one tap;
//! `cin = 0` gives `act(bias)`. Whether a weight that is NaN or infinite counts where it meets the padding is open.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// Cross-correlation with stride, padding, dilation and groups: see the [module](self).
    Conv = "conv";
    operands {
        /// `[batch, cin, spatial..]`, rank 3 to 5.
        x: In,
        /// `[cout, cin / groups, taps..]`
        w: Weight,
        /// `[batch, cout, spatial'..]`
        out: Out,
    }
    optional {
        /// `[cout]`
        bias: In,
    }
    fields {
        /// Step of the window.
        stride: usize = 1,
        /// Zeros before and after each dimension.
        pad: usize = 0,
        /// Distance between taps.
        dilation: usize = 1,
        /// Channels are split into this many independent groups.
        groups: usize = 1,
        /// Applied last.
        act: Activation = Activation::None,
    }
}

impl Conv {
    /// Dimensions of space: 1 to 3.
    pub fn space(&self) -> usize {
        self.x.rank().saturating_sub(2)
    }

    /// Products per output element: input channels of a group times taps.
    pub fn terms(&self) -> usize {
        self.w.shape()[1..].iter().product()
    }

    /// Window positions along a dimension: none where the window does not fit. `None` where numbers overflow.
    fn positions(&self, extent: usize, taps: usize) -> Option<usize> {
        let padded = extent.checked_add(self.pad.checked_mul(2)?)?;
        let window = self.dilation.checked_mul(taps.checked_sub(1)?)?.checked_add(1)?;
        Some(padded.checked_sub(window).map_or(0, |room| room / self.stride + 1))
    }

    /// The sum of the output element of channel `o` at a position, and that of its terms' absolute values.
    fn element(&self, x: &Array, w: &Array, batch: usize, o: usize, at: &[usize]) -> (f64, f64) {
        let (cin, per_group) = (self.x.shape()[1], self.w.shape()[1]);
        let group = o / (self.out.shape()[1] / self.groups);
        let (extents, taps) = (&self.x.shape()[2..], &self.w.shape()[2..]);
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for i in 0..per_group {
            let channel = batch * cin + group * per_group + i;
            let inside = |d: usize, tap: usize| {
                (at[d] * self.stride + tap * self.dilation).checked_sub(self.pad).filter(|&p| p < extents[d])
            };
            for tap in 0..taps.iter().product() {
                let index = unravel(tap, taps);
                let place = (0..taps.len()).try_fold(channel, |p, d| Some(p * extents[d] + inside(d, index[d])?));
                if let Some(place) = place {
                    let term = x.data[place] * w.data[(o * per_group + i) * taps.iter().product::<usize>() + tap];
                    sum += term;
                    magnitude += term.abs();
                }
            }
        }
        (sum, magnitude)
    }
}

/// The index of row-major element `i`.
fn unravel(mut i: usize, shape: &[usize]) -> [usize; 3] {
    let mut index = [0; 3];
    for d in (0..shape.len()).rev() {
        (index[d], i) = (i % shape[d], i / shape[d]);
    }
    index
}

impl Semantics for Conv {
    fn check(&self) -> Result<(), String> {
        let (x, w, out) = (&self.x, &self.w, &self.out);
        ensure!((3..=5).contains(&x.rank()), "x must have rank 3 to 5");
        ensure!(w.rank() == x.rank() && out.rank() == x.rank(), "w and out must have x's rank");
        for o in &self.operands() {
            ensure!(o.spec.dtype().is_float(), "{} is {}, must be f32, f16 or bf16", o.name, o.spec.dtype());
        }
        ensure!(self.stride > 0 && self.dilation > 0 && self.groups > 0, "stride, dilation and groups must be above 0");
        let (cin, cout) = (x.shape()[1], w.shape()[0]);
        let even = cin % self.groups == 0 && cout % self.groups == 0;
        ensure!(even, "{cin} input and {cout} output channels must be multiples of {} groups", self.groups);
        let per_group = cin / self.groups;
        ensure!(w.shape()[1] == per_group, "w has {} input channels, must be {per_group}", w.shape()[1]);
        ensure!(out.shape()[0] == x.shape()[0], "batches of x and out differ");
        ensure!(out.shape()[1] == cout, "out has {} channels, must be {cout}", out.shape()[1]);
        for d in 2..x.rank() {
            let positions = self.positions(x.shape()[d], w.shape()[d]);
            let Some(positions) = positions else {
                return Err("there must be at least one tap, and the padded extents must not overflow".into());
            };
            ensure!(out.shape()[d] == positions, "out's extent is {}, must be {positions}", out.shape()[d]);
        }
        let fits = self.bias.is_none_or(|b| b.shape() == [cout]);
        ensure!(fits, "bias must be [{cout}]");
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::BIAS, self.bias.is_some());
        f.set(Features::ACTIVATION, self.act != Activation::None);
        f.set(Features::CONV_STEP, (self.stride, self.dilation, self.groups) != (1, 1, 1));
        f
    }

    fn flops(&self) -> u64 {
        (self.out.numel() as u64).saturating_mul(2).saturating_mul(self.terms() as u64)
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (x, w, bias) = (arrays.of("x"), arrays.of("w"), arrays.get("bias"));
        let (cout, space) = (self.out.shape()[1], &self.out.shape()[2..]);
        let points: usize = space.iter().product();
        let at = |i: usize| {
            let (o, batch) = (i / points % cout, i / points / cout);
            let (sum, magnitude) = self.element(x, w, batch, o, &unravel(i % points, space));
            let bias = bias.map_or(0.0, |b| b.data[o]);
            (self.act.apply(sum + bias), magnitude + bias.abs())
        };
        let (data, magnitude) = (0..self.out.numel()).map(at).unzip();
        arrays.set_with("out", data, magnitude);
    }

    fn bound(&self, _output: &str) -> Bound {
        // The bias and the activation, whose slope is at most 1.2, stay below 8 eps.
        let sum = Bound::dot(self.terms());
        Bound { relative: 1.2 * sum.relative + 8.0 * f32::EPSILON as f64, ..sum }
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        // Whether a weight that is not finite counts where it meets the padding is open.
        let finite = operand.name == "w" && fill == Fill::Special;
        finite.then(|| (0..operand.spec.numel()).map(|_| rng.value(Fill::Normal)).collect())
    }

    fn class(&self) -> Self {
        let batch = |s: &Spec| {
            let mut shape = s.shape().to_vec();
            shape[0] = class_rows(shape[0]);
            Spec::new(s.dtype(), &shape)
        };
        let build = || -> crate::Result<Self> {
            let bias = self.bias.map(|b| b.dense());
            Ok(Conv { x: batch(&self.x)?, w: self.w.dense(), out: batch(&self.out)?, bias, ..*self })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        // `[batch, cin, spatial..]`, `[cout, taps..]`, then stride, pad, dilation, groups
        let of = |d, x: &[usize], w: &[usize], [stride, pad, dilation, groups]: [usize; 4]| {
            let spec = |s: &[usize]| Spec::new(d, s).expect("a case's spec");
            let weights = [&[w[0], x[1] / groups], &w[1..]].concat();
            let mut op = Conv::new(spec(x), spec(&weights), spec(x));
            (op.stride, op.pad, op.dilation, op.groups) = (stride, pad, dilation, groups);
            let mut out = vec![x[0], w[0]];
            out.extend((2..x.len()).map(|i| op.positions(x[i], weights[i]).expect("a case's extents")));
            Conv { out: spec(&out), ..op }
        };
        let mut all = Vec::new();
        for (x, w, steps) in [
            (&[2, 3, 17][..], &[5, 4][..], [1, 0, 1, 1]),
            (&[1, 1, 1], &[1, 1], [1, 0, 1, 1]),
            (&[0, 3, 17], &[5, 4], [1, 0, 1, 1]),
            (&[2, 3, 17], &[0, 4], [1, 0, 1, 1]),
            (&[2, 0, 17], &[5, 4], [1, 0, 1, 1]),
            (&[2, 3, 3], &[5, 4], [1, 0, 1, 1]),
            (&[1, 16, 50], &[24, 3], [2, 1, 1, 1]),
            (&[1, 6, 31], &[6, 5], [1, 4, 2, 6]),
            (&[1, 8, 20], &[12, 3], [3, 2, 3, 4]),
            (&[2, 3, 12, 16], &[7, 4, 4], [4, 0, 1, 1]),
            (&[1, 3, 9, 11], &[5, 3, 3], [1, 1, 1, 1]),
            (&[1, 4, 9, 11], &[6, 3, 2], [2, 1, 2, 2]),
            (&[1, 5, 7, 7], &[33, 1, 1], [1, 0, 1, 1]),
            (&[1, 2, 5, 6, 7], &[3, 2, 3, 2], [1, 1, 1, 1]),
            (&[2, 4, 8, 8, 8], &[4, 2, 2, 2], [2, 0, 1, 2]),
        ] {
            all.push(of(F32, x, w, steps));
        }
        let bias = |d, n: usize| Some(Spec::new(d, &[n]).expect("a case's spec"));
        for d in [F16, BF16] {
            all.push(Conv { bias: bias(d, 7), ..of(d, &[2, 3, 12, 16], &[7, 4, 4], [4, 0, 1, 1]) });
            let base = of(d, &[1, 3, 9, 11], &[5, 3, 3], [1, 1, 1, 1]);
            all.push(Conv { x: base.x.with_dtype(F32).expect("a case's spec"), bias: bias(F32, 5), ..base });
        }
        let base = of(F32, &[2, 3, 9, 11], &[5, 3, 3], [1, 1, 1, 1]);
        all.extend(Activation::ALL.iter().map(|&act| Conv { act, bias: bias(F32, 5), ..base }));
        all.push(Conv { act: Activation::Relu, ..base });
        // channels last, rows with gaps, repeated batches
        all.push(Conv { x: strided(F32, &[2, 3, 9, 11], &[297, 1, 33, 3]), ..base });
        all.push(Conv { x: strided(F32, &[2, 3, 9, 11], &[0, 200, 20, 1]), ..base });
        all.push(Conv { w: strided(F32, &[5, 3, 3, 3], &[1, 5, 45, 15]), ..base });
        all.push(Conv { out: strided(F32, &[2, 5, 9, 11], &[495, 1, 55, 5]), ..base });
        all.push(Conv { determinism: Determinism::ThreadCount, ..base });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    fn parse(text: &str) -> Op {
        format!("conv {text}").parse().unwrap()
    }

    #[test]
    fn cases_hold() {
        check_cases::<Conv>();
    }

    #[test]
    fn one_dimension() {
        let op = parse("x=f32:1x1x4 w=f32:1x1x2 out=f32:1x1x3 bias=f32:1 act=relu");
        let got = compute(op, &[("x", &[1.0, 2.0, 4.0, -9.0]), ("w", &[-1.0, 1.0]), ("bias", &[0.5])]);
        assert_eq!(got.of("out").data, [1.5, 2.5, 0.0]);
        // Taps at distance 2, steps of 3, two zeros at each side.
        let op = parse("x=f32:1x1x4 w=f32:1x1x2 out=f32:1x1x2 stride=3 pad=2 dilation=2");
        let got = compute(op, &[("x", &[1.0, 2.0, 4.0, 8.0]), ("w", &[10.0, 1.0])]);
        assert_eq!(got.of("out").data, [1.0, 28.0]);
    }

    #[test]
    fn groups_and_planes() {
        let op = parse("x=f32:1x2x1x2 w=f32:2x1x1x2 out=f32:1x2x1x1 groups=2");
        let got = compute(op, &[("x", &[1.0, 2.0, 3.0, 4.0]), ("w", &[1.0, 10.0, 100.0, 1000.0])]);
        assert_eq!(got.of("out").data, [21.0, 4300.0]);
        let op = parse("x=f32:1x1x2x2x2 w=f32:1x1x2x2x2 out=f32:1x1x1x1x1");
        let ones = [1.0; 8];
        assert_eq!(compute(op, &[("x", &ones), ("w", &ones)]).of("out").data, [8.0]);
    }

    #[test]
    fn nothing_to_add_up() {
        let op = parse("x=f32:1x0x3 w=f32:2x0x1 out=f32:1x2x3 bias=f32:2");
        assert_eq!(compute(op, &[("bias", &[5.0, -5.0])]).of("out").data, [5.0, 5.0, 5.0, -5.0, -5.0, -5.0]);
        let op = parse("x=f32:1x1x2 w=f32:1x1x3 out=f32:1x1x0");
        assert!(compute(op, &[]).of("out").data.is_empty(), "the window does not fit");
        // NaN spoils the windows it lies in.
        let op = parse("x=f32:1x1x4 w=f32:1x1x2 out=f32:1x1x3");
        let got = compute(op, &[("x", &[1.0, 2.0, 3.0, f64::NAN]), ("w", &[1.0, 1.0])]);
        assert_close(&got.of("out").data, &[3.0, 5.0, f64::NAN]);
    }

    #[test]
    fn refusals() {
        for (text, why) in [
            ("x=f32:2x3 w=f32:2x3 out=f32:2x3", "rank"),
            ("x=f32:1x3x5 w=f32:2x3x2x2 out=f32:1x2x4", "rank"),
            ("x=f32:1x3x5 w=f32:2x3x2 out=f32:1x2x5", "extent"),
            ("x=f32:1x3x5 w=f32:2x3x0 out=f32:1x2x6", "tap"),
            ("x=f32:1x3x5 w=f32:2x3x2 out=f32:1x2x4 stride=0", "stride"),
            ("x=f32:1x3x5 w=f32:2x1x2 out=f32:1x2x4 groups=2", "groups"),
            ("x=f32:1x4x5 w=f32:2x4x2 out=f32:1x2x4 groups=2", "input channels"),
            ("x=f32:1x3x5 w=f32:2x3x2 out=f32:1x2x4 pad=18446744073709551615", "overflow"),
            ("x=f32:1x3x5 w=f32:2x3x2 out=f32:1x2x4 dilation=18446744073709551615", "extent"),
            ("x=f32:1x3x5 w=f32:2x3x2 out=f32:1x2x4 bias=f32:3", "bias"),
            ("x=f32:1x3x5 w=i8:2x3x2 out=f32:1x2x4", "w is i8"),
        ] {
            assert_refused(parse(text), why);
        }
    }
}
