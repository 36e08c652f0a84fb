//! Copying with any strides and to any dtype: convert, quantize, dequantize, permute, and (into slices) concatenate.
//!
//! `out[i] = x[i]`, same shape. Bit-exact on every device: floats round to nearest even, NaN stays NaN, beyond the range
//! f16 and bf16 give infinities and fp8 saturates (e4m3: 448; e5m2: 57344; NaN kept); floats to integers round to nearest
//! even and saturate, NaN gives 0; quantized formats are encoded as GGUF's own reference encoder does (see `quant`), a
//! block of numbers that are not all finite to unspecified ones. Same dtype: the bytes. Otherwise every value passes
//! through f32, i32 too.

use super::*;
use crate::{dtype::DType, layout::Spec};

descriptor! {
    /// `out = x` in another dtype or layout: see the [module](self).
    Convert = "convert";
    operands {
        /// Any dtype and layout.
        x: In,
        /// The same shape.
        out: Out,
    }
    optional {}
    fields {}
}

impl Semantics for Convert {
    fn check(&self) -> Result<(), String> {
        let (x, out) = (self.x.shape(), self.out.shape());
        ensure!(x == out, "out is {out:?}, must be x's {x:?}");
        Ok(())
    }

    fn features(&self) -> Features {
        Features::empty()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn reference(&self, arrays: &mut Arrays) {
        let mut data = arrays.of("x").data.clone();
        if self.x.dtype() == DType::I32 && self.out.dtype() != DType::I32 {
            data.iter_mut().for_each(|v| *v = *v as f32 as f64);
        }
        arrays.set("out", data);
    }

    fn bound(&self, _output: &str) -> Bound {
        Bound::EXACT
    }

    fn judge(&self, output: &str, expected: &Arrays, got: &Array) -> Option<Result<(), String>> {
        // Copied blocks decode to what the source decodes to; encoding that once more need not give the same blocks.
        let copies = output == "out" && self.x.dtype() == self.out.dtype() && self.x.dtype().is_quantized();
        copies.then(|| {
            let x = &expected.of("x").data;
            let same = |i: &usize| got.data.get(*i).is_some_and(|g| g.to_bits() == x[*i].to_bits());
            match (0..x.len()).find(|i| !same(i)) {
                Some(i) => Err(format!("out[{i}] is {:?}, expected {}", got.data.get(i), x[i])),
                None => Ok(()),
            }
        })
    }

    fn fill(&self, operand: &Operand, fill: Fill, rng: &mut Rng) -> Option<Vec<f64>> {
        let (from, to) = (self.x.dtype(), self.out.dtype());
        let value = |rng: &mut Rng| match from {
            DType::I8 => rng.below(256) as f64 - 128.0,
            DType::U8 => rng.below(256) as f64,
            DType::I32 => (rng.next() as i32 >> rng.below(32)) as f64,
            _ => {
                // What a block with NaN or infinity is encoded to is open.
                let finite = from.is_quantized() || to.is_quantized();
                let v = rng.value(if finite && fill == Fill::Special { Fill::Normal } else { fill });
                match (to, rng.below(4)) {
                    // Halves, to be rounded to even, and numbers beyond the range.
                    (DType::I8 | DType::U8 | DType::I32, 0) => (v * 1e9) as f32 as f64,
                    (DType::I8 | DType::U8 | DType::I32, _) => (v * 160.0).round() / 2.0,
                    // Halfway between two neighbours.
                    (DType::F16, 0 | 1) => halfway(v, 10),
                    (DType::BF16, 0 | 1) => halfway(v, 7),
                    (DType::F8E4M3, 0 | 1) => halfway(v, 3),
                    (DType::F8E5M2, 0 | 1) => halfway(v, 2),
                    _ => v,
                }
            }
        };
        (operand.name == "x").then(|| (0..operand.spec.numel()).map(|_| value(rng)).collect())
    }

    fn class(&self) -> Self {
        let build = || -> crate::Result<Self> {
            Ok(Convert { x: class_spec(&self.x)?, out: class_spec(&self.out)?, ..*self })
        };
        build().unwrap_or(*self)
    }

    fn cases() -> Vec<Self> {
        use DType::*;
        let spec = |d, s: &[usize]| Spec::new(d, s).expect("a case's spec");
        let strided = |d, s: &[usize], t: &[usize]| Spec::strided(d, s, t).expect("a case's spec");
        let of = |x, out, shape: &[usize]| Convert::new(spec(x, shape), spec(out, shape));
        let mut all = Vec::new();
        let plain: Vec<DType> = DType::ALL.iter().copied().filter(|d| !d.is_quantized()).collect();
        for &x in &plain {
            all.extend(plain.iter().map(|&out| of(x, out, &[3, 67])));
        }
        for &q in DType::ALL.iter().filter(|d| d.is_quantized()) {
            let n = 3 * q.block().0;
            all.extend([F32, F16, BF16].map(|d| of(d, q, &[2, n])));
            all.extend([F32, F16, BF16].map(|d| of(q, d, &[2, n])));
            all.push(of(q, q, &[2, n]));
            // into and out of slices of wider rows
            all.push(Convert { x: strided(q, &[3, n], &[2 * n, 1]), ..of(q, F32, &[3, n]) });
            all.push(Convert { out: strided(q, &[3, n], &[2 * n, 1]), ..of(F32, q, &[3, n]) });
            all.push(Convert { x: strided(q, &[2, 3, n], &[n, 2 * n, 1]), ..of(q, q, &[2, 3, n]) });
            all.push(Convert { x: strided(F32, &[2, n], &[1, 2]), ..of(F32, q, &[2, n]) });
        }
        all.extend([of(Q8_0, Q4_0, &[2, 64]), of(Q4_K, Q8_0, &[1, 256])]);
        for shape in [&[1][..], &[0], &[0, 4], &[4, 0], &[1031], &[2, 1, 3, 1, 5], &[2, 3, 2, 3, 2, 3]] {
            all.extend([of(F32, F32, shape), of(F32, F16, shape)]);
        }
        // copies of strided, permuted, repeated and sliced tensors
        for d in [F32, BF16, I8] {
            let base = of(d, d, &[4, 5, 18]);
            all.push(Convert { x: strided(d, &[4, 5, 18], &[1, 72, 4]), ..base });
            all.push(Convert { x: strided(d, &[4, 5, 18], &[18, 72, 1]), ..base });
            all.push(Convert { x: strided(d, &[4, 5, 18], &[0, 18, 1]), ..base });
            all.push(Convert { out: strided(d, &[4, 5, 18], &[500, 40, 2]), ..base });
            let out = strided(d, &[4, 5, 18], &[1, 80, 4]);
            all.push(Convert { x: strided(d, &[4, 5, 18], &[90, 1, 5]), out, ..base });
        }
        all.push(Convert { x: strided(F32, &[33, 34], &[1, 33]), ..of(F32, F16, &[33, 34]) });
        all.push(Convert { determinism: Determinism::BatchInvariant, ..of(F32, BF16, &[7, 31]) });
        all
    }
}

/// The nearest number halfway between two that have `mantissa` bits.
fn halfway(v: f64, mantissa: i32) -> f64 {
    if v == 0.0 || !v.is_finite() {
        return v;
    }
    let step = f64::exp2(v.abs().log2().floor() - mantissa as f64);
    ((v / step).floor() + 0.5) * step
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    #[test]
    fn cases_hold() {
        check_cases::<Convert>();
    }

    /// What the values are once encoded and decoded as `out`.
    fn converted(from: DType, to: DType, values: &[f64]) -> Vec<f64> {
        let shape = [values.len()];
        let arrays = compute(Convert::new(spec(from, &shape), spec(to, &shape)), &[("x", values)]);
        let mut bytes = vec![0; spec(to, &shape).span()];
        arrays.of("out").encode(None, &mut bytes).unwrap();
        Array::decode(spec(to, &shape), &bytes).unwrap().data
    }

    #[test]
    fn rounding_and_saturation() {
        use DType::*;
        const INF: f64 = f64::INFINITY;
        let x = [0.5, 1.5, 2.5, -0.5, -3.5, 300.0, -300.0, 1e20, f64::NAN, -INF];
        assert_eq!(converted(F32, I8, &x), [0.0, 2.0, 2.0, 0.0, -4.0, 127.0, -128.0, 127.0, 0.0, -128.0]);
        assert_eq!(converted(F32, U8, &x), [0.0, 2.0, 2.0, 0.0, 0.0, 255.0, 0.0, 255.0, 0.0, 0.0]);
        let (min, max) = (i32::MIN as f64, i32::MAX as f64);
        assert_eq!(converted(F32, I32, &x), [0.0, 2.0, 2.0, 0.0, -4.0, 300.0, -300.0, max, 0.0, min]);
        let half = f64::exp2(-11.0);
        assert_eq!(converted(F32, F16, &[1.0 + half, 1.0 + 3.0 * half, 7e4, -7e4]), [1.0, 1.0 + 4.0 * half, INF, -INF]);
        assert_eq!(converted(F32, BF16, &[1.0 + 1.0 / 256.0, 3.4e38]), [1.0, INF]);
        assert!(converted(F32, F16, &[f64::NAN])[0].is_nan() && converted(F32, BF16, &[f64::NAN])[0].is_nan());
    }

    #[test]
    fn i32_passes_through_f32() {
        use DType::*;
        let x = [16777217.0, i32::MAX as f64, i32::MIN as f64];
        assert_eq!(converted(I32, F32, &x), [16777216.0, 2147483648.0, i32::MIN as f64]);
        assert_eq!(converted(I32, I32, &x), x);
        assert_eq!(converted(I32, U8, &[-5.0, 7.0, 1e9]), [0.0, 7.0, 255.0]);
        // Halfway for bf16 once in f32, though just above it as an integer.
        let tie = (1u32 << 30) as f64 * (1.0 + 1.0 / 256.0);
        assert_eq!(converted(I32, BF16, &[tie + 1.0]), [(1u32 << 30) as f64]);
    }

    #[test]
    fn copied_blocks_are_judged_by_their_source() {
        let q = spec(DType::Q8_0, &[32]);
        let op = Op::from(Convert::new(q, q));
        let x: Vec<f64> = (0..32).map(f64::from).collect();
        let arrays = compute(op, &[("x", &x)]);
        let mut got = arrays.of("out").clone();
        assert_eq!(op.accept("out", &arrays, &got), Ok(()));
        got.data[31] = 30.0;
        assert!(op.accept("out", &arrays, &got).is_err());
        got.data.pop();
        assert!(op.accept("out", &arrays, &got).is_err());
    }

    #[test]
    fn halfway_is_halfway() {
        assert_eq!(halfway(1.0, 2), 1.125);
        assert_eq!(halfway(-5.9, 2), -5.5);
        assert_eq!(halfway(0.0, 2), 0.0);
        assert_refused(Convert::new(spec(DType::F32, &[2, 3]), spec(DType::F32, &[3, 2])), "out");
    }
}
