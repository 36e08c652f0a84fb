//! Whether a result is right: the one place where bounds are applied.

use super::{Array, Arrays, Bound, Op};
use crate::dtype::DType;

impl Op {
    /// Judges what a device computed for the named output. `expected` holds the inputs and the reference's outputs.
    /// `Err` names the worst element.
    pub fn accept(&self, output: &str, expected: &Arrays, got: &Array) -> Result<(), String> {
        if let Some(verdict) = self.judge(output, expected, got) {
            return verdict;
        }
        let want = expected.get(output).ok_or_else(|| format!("{output} is no operand"))?;
        self.bound(output).accept(want, got).map_err(|why| format!("{output}{why}"))
    }
}

impl Bound {
    /// How far from the expected element `i` a result may lie; 0 beyond the last. Infinities are met exactly.
    pub fn allowed(&self, want: &Array, i: usize) -> f64 {
        let Some(&value) = want.data.get(i).filter(|v| v.is_finite() && *self != Bound::EXACT) else { return 0.0 };
        let unit = match want.spec.dtype() {
            d if d.is_quantized() => step(want, i),
            d => ulp(d, value),
        };
        // Where infinite terms made a finite value (relu(-inf)), the value is all there is to be relative to.
        let magnitude = Some(want.magnitude(i)).filter(|m| m.is_finite()).unwrap_or(value.abs());
        self.relative * magnitude + self.ulps * unit + FLUSH
    }

    fn accept(&self, want: &Array, got: &Array) -> Result<(), String> {
        if want.data.len() != got.data.len() {
            return Err(format!(": {} elements, expected {}", got.data.len(), want.data.len()));
        }
        let dtype = want.spec.dtype();
        let rounded = round(want).map_err(|e| format!(": {e}"))?;
        let (mut error, mut power) = (0.0, 0.0);
        for (&w, &g) in rounded.iter().zip(&got.data).filter(|(w, g)| w.is_finite() && g.is_finite()) {
            error += (g - w) * (g - w);
            power += w * w;
        }
        if let Some(limit) = self.nmse.filter(|limit| error > limit * power) {
            return Err(format!(": normalized mean squared error {} exceeds {limit}", error / power));
        }
        let single = self.nmse.map(|nmse| 16.0 * (nmse * power / got.data.len() as f64).sqrt());
        for (i, (&w, &g)) in rounded.iter().zip(&got.data).enumerate() {
            let exact = *self == Bound::EXACT;
            let good = match (w.is_nan(), g.is_nan()) {
                (true, true) => true,
                (false, false) if exact => w.to_bits() == g.to_bits(),
                (false, false) if w == g => true,
                (false, false) => {
                    let allowed = self.allowed(want, i).max(single.unwrap_or(0.0));
                    if g.is_infinite() {
                        // Right only where an allowed value rounds to it.
                        g.signum() == want.data[i].signum() && want.data[i].abs() + allowed >= largest(dtype)
                    } else {
                        (g - want.data[i]).abs() <= allowed
                    }
                }
                _ => false,
            };
            if !good {
                return Err(format!("[{i}] is {g}, expected {w} (allowed error {:e})", self.allowed(want, i)));
            }
        }
        Ok(())
    }
}

/// The expected values as the output's dtype holds them.
fn round(want: &Array) -> crate::Result<Vec<f64>> {
    let dense = Array { spec: want.spec.dense(), data: want.data.clone(), magnitude: Vec::new() };
    let mut bytes = vec![0; dense.spec.span()];
    dense.encode(None, &mut bytes)?;
    Ok(Array::decode(dense.spec, &bytes)?.data)
}

/// `(mantissa bits, smallest exponent, largest number)` of a float type.
fn float(dtype: DType) -> Option<(i32, i32, f64)> {
    match dtype {
        DType::F32 => Some((23, -126, f32::MAX as f64)),
        DType::F16 => Some((10, -14, 65504.0)),
        DType::BF16 => Some((7, -126, f32::from_bits(0x7f7f_0000) as f64)),
        DType::F8E4M3 => Some((3, -6, 448.0)),
        DType::F8E5M2 => Some((2, -14, 57344.0)),
        _ => None,
    }
}

fn largest(dtype: DType) -> f64 {
    float(dtype).map_or(f64::INFINITY, |f| f.2)
}

/// A device may treat subnormal numbers as zeros, on the way in and out. Each loss is below `f32::MIN_POSITIVE` times what
/// multiplies it; a sum of a thousand such losses is still far below anything else that is added up.
const FLUSH: f64 = 1024.0 * f32::MIN_POSITIVE as f64;

/// How far a re-encoded element of a quantized tensor may move: rounding may land one step of its block away, the block's
/// own scale is rounded too, and a format whose range is not symmetric clips up to a step.
fn step(want: &Array, i: usize) -> f64 {
    let (elements, bytes) = want.spec.dtype().block();
    let block = want.data.chunks(elements).nth(i / elements).unwrap_or_default();
    let largest = block.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    2.2 * largest / f64::exp2((bytes * 8 / elements) as f64 - 1.0)
}

/// The distance between neighbours at `x`; 1 for integers.
pub(crate) fn ulp(dtype: DType, x: f64) -> f64 {
    let Some((mantissa, least, max)) = float(dtype) else { return 1.0 };
    let x = x.abs().min(max);
    let exponent = if x == 0.0 { least } else { (x.log2().floor() as i32).max(least) };
    f64::exp2((exponent - mantissa) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Spec;

    fn array(dtype: DType, data: &[f64]) -> Array {
        let spec = Spec::new(dtype, &[data.len()]).expect("a spec");
        Array { spec, data: data.to_vec(), magnitude: Vec::new() }
    }

    #[test]
    fn bounds_hold_at_their_edges() {
        let eps = f32::EPSILON as f64;
        let bound = Bound::relative(8.0 * eps);
        let want = array(DType::F32, &[1.0, -2.0, f64::NAN, f64::INFINITY]);
        let near = array(DType::F32, &[1.0 + 8.0 * eps, -2.0, f64::NAN, f64::INFINITY]);
        assert_eq!(bound.accept(&want, &near), Ok(()));
        for (i, wrong) in [(0, 1.0 + 9.0 * eps), (1, 2.0), (2, 0.0), (3, f64::NEG_INFINITY), (0, f64::NAN)] {
            let mut bad = near.clone();
            bad.data[i] = wrong;
            assert!(bound.accept(&want, &bad).is_err(), "element {i} = {wrong}");
        }
        assert!(bound.accept(&want, &array(DType::F32, &[1.0])).is_err());
    }

    #[test]
    fn exact_means_bits_after_rounding() {
        let want = array(DType::F16, &[1.0 + 1e-9, 0.0]);
        assert_eq!(Bound::EXACT.accept(&want, &array(DType::F16, &[1.0, 0.0])), Ok(()));
        assert!(Bound::EXACT.accept(&want, &array(DType::F16, &[1.0, -0.0])).is_err());
        let beyond = array(DType::F16, &[1e6]);
        assert_eq!(Bound::relative(0.0).accept(&beyond, &array(DType::F16, &[f64::INFINITY])), Ok(()));
    }

    #[test]
    fn infinities_are_neither_made_nor_lost() {
        let bound = Bound::relative(1e-3);
        let judge = |want: f64, got: f64| bound.accept(&array(DType::F16, &[want]), &array(DType::F16, &[got]));
        assert_eq!(judge(65500.0, f64::INFINITY), Ok(()), "a rounding error away");
        for (want, got) in [
            (f64::INFINITY, 65504.0),
            (1e6, 65504.0),
            (-65500.0, f64::INFINITY),
            (1.0, f64::INFINITY),
            (1e6, f64::NEG_INFINITY),
        ] {
            assert!(judge(want, got).is_err(), "{want} {got}");
        }
    }

    #[test]
    fn subnormals_may_be_flushed_and_blocks_may_land_a_step_away() {
        let tiny = array(DType::F32, &[1e-39]);
        assert_eq!(Bound::relative(0.0).accept(&tiny, &array(DType::F32, &[0.0])), Ok(()));
        assert!(Bound::EXACT.accept(&tiny, &array(DType::F32, &[0.0])).is_err());
        let mut want = array(DType::Q8_0, &[0.0; 32]);
        want.data[0] = 127.0;
        assert!(Bound::relative(0.0).allowed(&want, 1) > 1.0 && Bound::relative(0.0).allowed(&want, 1) < 1.3);
    }

    #[test]
    fn nmse_judges_the_whole_and_outliers() {
        let bound = Bound { nmse: Some(1e-4), ..Bound::relative(0.0) };
        let want = array(DType::F32, &[1.0; 100]);
        let mut got = want.clone();
        got.data[7] = 1.05;
        assert_eq!(bound.accept(&want, &got), Ok(()));
        got.data[7] = 1.2;
        assert!(bound.accept(&want, &got).is_err());
        assert!(bound.accept(&want, &array(DType::F32, &[1.02; 100])).is_err());
    }
}
