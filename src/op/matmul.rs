//! Matrix multiplication with a constant or computed right-hand side, and everything that may follow it in one pass.
//!
//! `y[b, i, j] = sum_k x[b, i, k] * w[b, j, k]`, then in this order:
//! times `x_scale[i]` and `w_scale[j]`; plus `bias[j]`; `act(y)`, or with `up` the gated pair `act(y) * (x upᵀ)`, where `up`
//! shares `w`'s shape and scales of its own are not defined; times `scale`; plus `residual[i, j]`.
//! (So `residual + scale * f(x)` is Granite's sub-layer output in one call.)
//!
//! - `x` is `[.., m, k]`, `w` `[.., n, k]` (a row per output, as files store it; an untransposed `[k, n]` matrix is the
//!   same with strides `1, n`), `out` and `residual` `[.., m, n]`. Up to two leading dimensions; `w` may lack them or have
//!   extent 1 there (broadcast).
//! - Integer operands (`i8` by `i8` or `u8` by `i8`) accumulate in i32, wrapping: no rounding before the scales.
//! - `w_scale` is `[n]` per channel, `[n/128, k/128]` (rounded up) per 128 x 128 block (these scale the
//!   products rather than the sum), or `[1]` per tensor.
//! - `k = 0` gives zeros before bias and the rest. NaN and infinities propagate as in IEEE arithmetic of the sum.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out = residual + scale * act(x wᵀ + bias)`: see the [module](self) for shapes and order.
    Matmul = "matmul";
    operands {
        /// `[.., m, k]` activations.
        x: In,
        /// `[.., n, k]` weights of any dtype.
        w: Weight,
        /// `[.., m, n]` f32, f16, bf16, or i32 for integer operands without scales.
        out: Out,
    }
    optional {
        /// `[n, k]`: the second factor of a gated pair.
        up: Weight,
        /// `[n]`
        bias: In,
        /// `[.., m, n]`, may be `out` itself.
        residual: In,
        /// `[m]` f32: a scale per row of integer or fp8 activations.
        x_scale: In,
        /// `[n]`, `[1]` or `[n/128, k/128]` f32: scales of integer or fp8 weights.
        w_scale: Weight,
    }
    fields {
        /// Applied after the bias.
        act: Activation = Activation::None,
        /// Multiplies the result before the residual is added.
        scale: Real = Real::ONE,
    }
}

impl Matmul {
    /// `(batch, m, n, k)`: batch is the product of `out`'s leading dimensions.
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        let leading = self.out.shape()[..self.out.rank() - 2].iter().product();
        (leading, self.x.dim(1), self.w.dim(1), self.x.dim(0))
    }

    /// For each matrix of the batch, the element offset at which the operand's matrix begins.
    pub fn batch_offset(out: &Spec, operand: &Spec, mut batch: usize) -> usize {
        let mut offset = 0;
        for i in 2..out.rank() {
            let (index, n) = (batch % out.dim(i), operand.dim(i));
            batch /= out.dim(i);
            offset += if n > 1 { index * operand.stride(i) } else { 0 };
        }
        offset
    }

    fn accumulates_integers(&self) -> bool {
        matches!(self.x.dtype(), DType::I8 | DType::U8)
    }
}

impl Semantics for Matmul {
    fn check(&self) -> Result<(), String> {
        use DType::*;
        let (x, w, out) = (&self.x, &self.w, &self.out);
        ensure!(x.rank() >= 2 && x.rank() <= 4 && w.rank() >= 2, "x needs rank 2 to 4 and w at least 2");
        ensure!(out.rank() == x.rank() && w.rank() <= x.rank(), "out has x's rank, and w no more");
        let (_, m, n, k) = self.dims();
        ensure!(w.dim(0) == k, "x has k = {k} but w {}", w.dim(0));
        ensure!(out.dim(1) == m && out.dim(0) == n, "out is {} x {}, must be {m} x {n}", out.dim(1), out.dim(0));
        for i in 2..out.rank() {
            ensure!(x.dim(i) == out.dim(i), "leading dimensions of x and out differ");
            ensure!(w.dim(i) == out.dim(i) || w.dim(i) == 1, "leading dimensions of w are out's or 1");
        }
        let integer = self.accumulates_integers();
        if integer {
            one_of("w of an integer product", w.dtype(), &[I8])?;
            one_of("out of an integer product", out.dtype(), &[I32, F32, F16, BF16])?;
        } else {
            one_of("x", x.dtype(), &[F32, F16, BF16, F8E4M3, F8E5M2])?;
            one_of("out", out.dtype(), &[F32, F16, BF16])?;
            ensure!(!matches!(w.dtype(), U8 | I32), "w is {}, which is not a weight type", w.dtype());
        }
        ensure!(x.rank() == 2 || self.up.is_none(), "a gated pair is not batched");
        if let Some(up) = &self.up {
            ensure!(up.shape() == w.shape() && up.dtype() == w.dtype(), "up must have w's shape and dtype");
            ensure!(self.x_scale.is_none() && self.w_scale.is_none(), "scales of a gated pair are not defined");
        }
        if let Some(bias) = &self.bias {
            ensure!(bias.shape() == [n] && bias.dtype().is_float(), "bias must be float [{n}]");
        }
        if let Some(r) = &self.residual {
            ensure!(r.shape() == out.shape() && r.dtype().is_float(), "residual must be float {:?}", out.shape());
        }
        if let Some(s) = &self.x_scale {
            ensure!(s.shape() == [m] && s.dtype() == F32, "x_scale must be f32 [{m}]");
        }
        if let Some(s) = &self.w_scale {
            let blocks = [n.div_ceil(128), k.div_ceil(128)];
            ensure!(s.dtype() == F32, "w_scale must be f32");
            ensure!(s.shape() == [n] || s.shape() == [1] || s.shape() == blocks, "w_scale must be [{n}], [1] or {blocks:?}");
        }
        let plain = self.bias.is_none() && self.residual.is_none() && self.x_scale.is_none() && self.w_scale.is_none()
            && self.up.is_none() && self.act == Activation::None && self.scale == Real::ONE;
        ensure!(out.dtype() != I32 || plain, "an i32 result takes no epilogue");
        ensure!(self.scale.get().is_finite(), "scale must be finite");
        Ok(())
    }

    fn features(&self) -> Features {
        let mut f = Features::empty();
        f.set(Features::BATCH, self.out.rank() > 2);
        f.set(Features::BROADCAST, (2..self.out.rank()).any(|i| self.w.dim(i) != self.out.dim(i)));
        f.set(Features::BIAS, self.bias.is_some());
        f.set(Features::ACTIVATION, self.act != Activation::None);
        f.set(Features::GATED, self.up.is_some());
        f.set(Features::RESIDUAL, self.residual.is_some());
        f.set(Features::SCALE, self.scale != Real::ONE);
        f.set(Features::SCALES, self.x_scale.is_some() || self.w_scale.is_some());
        f
    }

    fn flops(&self) -> u64 {
        let (batch, m, n, k) = self.dims();
        let products = if self.up.is_some() { 2 } else { 1 };
        (2 * products as u64).saturating_mul((batch * m) as u64).saturating_mul(n as u64).saturating_mul(k as u64)
    }

    fn reference(&self, arrays: &mut Arrays) {
        let (batch, m, n, k) = self.dims();
        let (x, w) = (arrays.of("x"), arrays.of("w"));
        let get = |name: &str| arrays.get(name);
        let (up, bias, residual) = (get("up"), get("bias"), get("residual"));
        let (x_scale, w_scale) = (get("x_scale"), get("w_scale"));
        let scale = self.scale.f64();
        let (mut data, mut magnitude) = (vec![0.0; batch * m * n], vec![0.0; batch * m * n]);
        for b in 0..batch {
            // (Strides of an empty weight are not 0.)
            let w_at = if k == 0 { 0 } else { Matmul::batch_offset(&self.out, &self.w.dense(), b) };
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let row = &x.data[(b * m + i) * k..][..k];
                let w_scale_at = |p: usize| match w_scale {
                    Some(s) if s.spec.rank() == 2 => s.data[j / 128 * k.div_ceil(128) + p / 128],
                    _ => 1.0,
                };
                let channel = match w_scale {
                    Some(s) if s.spec.rank() == 1 => s.data[if s.data.len() == 1 { 0 } else { j }],
                    _ => 1.0,
                };
                let dot = |w: &Array| {
                    let column = &w.data[w_at + j * k..][..k];
                    row.iter().zip(column).enumerate().fold((0.0, 0.0), |(sum, abs), (p, (a, b))| {
                        let product = a * b * w_scale_at(p);
                        (sum + product, abs + product.abs())
                    })
                };
                let (mut y, mut mag) = dot(w);
                if self.out.dtype() == DType::I32 {
                    y = (y as i64 as i32) as f64; // wraps
                }
                let scales = x_scale.map_or(1.0, |s| s.data[i]);
                y = y * scales * channel;
                mag = mag * scales.abs() * channel.abs();
                if let Some(bias) = bias {
                    y += bias.data[j];
                    mag += bias.data[j].abs();
                }
                y = self.act.apply(y);
                if let Some(up) = up {
                    let (u, u_mag) = dot(up);
                    mag = mag * u.abs() + y.abs() * u_mag;
                    y *= u;
                }
                y *= scale;
                mag *= scale.abs();
                let at = (b * m + i) * n + j;
                if let Some(r) = residual {
                    y += r.data[at];
                    mag += r.data[at].abs();
                }
                data[at] = y;
                magnitude[at] = mag;
            }
        }
        arrays.set_with("out", data, magnitude);
    }

    fn bound(&self, _output: &str) -> Bound {
        let (_, _, _, k) = self.dims();
        if self.out.dtype() == DType::I32 {
            return Bound::EXACT;
        }
        // The f32 rounding of each epilogue step, and the activation's own 1.2 slope, stay below 8 eps.
        let exact = Bound { relative: Bound::dot(k).relative + 8.0 * f32::EPSILON as f64, ..Bound::dot(k) };
        match self.numerics {
            Numerics::Exact => exact,
            Numerics::Fast => Bound { nmse: Some(5e-4), ..exact },
        }
    }

    fn may_alias(&self, out: &str, input: &str) -> bool {
        out == "out" && input == "residual"
    }

    fn class(&self) -> Self {
        let (_, m, n, k) = self.dims();
        let rows = class_rows(m);
        // Falls back to the operation itself where a rounded shape would not be legal.
        let round = |s: &Spec, last: usize| {
            let mut shape = s.shape().to_vec();
            let at = shape.len() - 2;
            (shape[at], shape[at + 1]) = (rows, last);
            Spec::new(s.dtype(), &shape)
        };
        let build = || -> crate::Result<Self> {
            let mut op = *self;
            (op.x, op.out, op.w) = (round(&self.x, k)?, round(&self.out, n)?, self.w.dense());
            op.up = self.up.map(|s| s.dense());
            op.residual = self.residual.map(|s| round(&s, n)).transpose()?;
            op.x_scale = self.x_scale.map(|s| Spec::new(s.dtype(), &[rows])).transpose()?;
            Ok(op)
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let plain = |x, w, out, m, n, k| Matmul::new(spec(x, &[m, k]), spec(w, &[n, k]), spec(out, &[m, n]));
        let mut all = Vec::new();
        // tails of every tile: one under and over the usual sizes, primes, zeros
        for (m, n, k) in [
            (1, 1, 1), (0, 5, 7), (5, 0, 7), (5, 7, 0), (1, 33, 65), (2, 16, 32), (3, 31, 17), (4, 48, 64), (5, 17, 100),
            (7, 100, 13), (8, 64, 129), (13, 15, 97), (15, 65, 31), (17, 33, 255), (33, 129, 63), (64, 64, 64), (97, 49, 257),
        ] {
            all.push(plain(F32, F32, F32, m, n, k));
        }
        for d in [F16, BF16] {
            for (m, n, k) in [(1, 40, 72), (6, 33, 65), (19, 70, 130)] {
                all.extend([plain(d, d, d, m, n, k), plain(F32, d, F32, m, n, k), plain(d, F32, F32, m, n, k)]);
            }
        }
        for &d in DType::ALL.iter().filter(|d| d.is_quantized()) {
            let (block, _) = d.block();
            let all_shapes = [(1, 37, block), (5, 9, 2 * block), (1, 64, 3 * block), (18, 35, 2 * block), (2, 0, block)];
            // The other formats differ in their decoding alone, and cost the reference an encoding each.
            let common = matches!(d, Q4_0 | Q8_0 | Q4_K | Q6_K);
            for (m, n, k) in all_shapes.into_iter().take(if common { 5 } else { 2 }) {
                let exact = plain(F32, d, F32, m, n, k);
                all.extend([exact, Matmul { numerics: Numerics::Fast, ..exact }]);
            }
            all.push(plain(BF16, d, BF16, 9, 21, 2 * block));
            all.push(plain(F16, d, F16, 1, 21, 2 * block));
        }
        for x in [I8, U8] {
            all.extend([plain(x, I8, I32, 1, 17, 66), plain(x, I8, I32, 9, 33, 130)]);
            let mut scaled = plain(x, I8, F32, 5, 19, 68);
            (scaled.x_scale, scaled.w_scale) = (Some(spec(F32, &[5])), Some(spec(F32, &[19])));
            all.push(scaled);
        }
        for (x, m) in [(F32, 1), (F32, 9), (BF16, 5)] {
            let op = Matmul { w_scale: Some(spec(F32, &[19])), ..plain(x, I8, F32, m, 19, 68) };
            all.extend([op, Matmul { numerics: Numerics::Fast, ..op }]);
        }
        for d in [F8E4M3, F8E5M2] {
            let mut op = plain(F32, d, F32, 3, 130, 140);
            all.push(op);
            op.w_scale = Some(spec(F32, &[2, 2]));
            all.push(op);
            op.w_scale = Some(spec(F32, &[1]));
            all.push(op);
        }
        // epilogues, each alone and together
        for m in [1, 6] {
            let base = plain(F32, F32, F32, m, 21, 40);
            let quant = plain(F32, Q8_0, F32, m, 21, 64);
            for base in [base, quant] {
                all.push(Matmul { bias: Some(spec(F32, &[21])), ..base });
                all.push(Matmul { residual: Some(base.out), scale: Real::new(0.22), ..base });
                for &act in Activation::ALL {
                    all.push(Matmul { act, ..base });
                    all.push(Matmul { act, up: Some(base.w), ..base });
                }
                all.push(Matmul {
                    act: Activation::Silu,
                    up: Some(base.w),
                    bias: Some(spec(F32, &[21])),
                    residual: Some(base.out),
                    scale: Real::new(-1.5),
                    ..base
                });
            }
        }
        // layouts: w untransposed, x transposed, rows with gaps, broadcast x rows, batches
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        for m in [1, 7] {
            let base = plain(F32, F32, F32, m, 18, 24);
            all.push(Matmul { w: strided(F32, &[18, 24], &[1, 18]), ..base });
            all.push(Matmul { x: strided(F32, &[m, 24], &[1, m]), ..base });
            all.push(Matmul { x: strided(F32, &[m, 24], &[100, 2]), out: strided(F32, &[m, 18], &[50, 2]), ..base });
            all.push(Matmul { x: strided(F32, &[m, 24], &[0, 1]), ..base });
        }
        let q = plain(F32, Q4_0, F32, 3, 6, 64);
        all.push(Matmul { w: strided(Q4_0, &[6, 64], &[96, 1]), ..q });
        for lead in [vec![3], vec![2, 3]] {
            let shape = |a: usize, b: usize| [lead.as_slice(), &[a, b]].concat();
            let batched = Matmul::new(spec(F32, &shape(5, 20)), spec(F32, &shape(9, 20)), spec(F32, &shape(5, 9)));
            all.push(batched);
            all.push(Matmul { w: spec(F32, &[9, 20]), ..batched });
            all.push(Matmul { residual: Some(batched.out), ..batched });
        }
        let thread_count = plain(F32, F32, F32, 33, 65, 129);
        all.push(Matmul { determinism: Determinism::ThreadCount, ..thread_count });
        all.push(Matmul { determinism: Determinism::BatchInvariant, ..thread_count });
        all
    }
}
