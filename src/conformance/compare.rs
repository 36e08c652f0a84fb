//! What an output's bytes are worth: the operation's own verdict, what an in/out operand must keep, and statistics.

use serde::Serialize;

use crate::{
    error::Result,
    op::{Array, Arrays, Bound, Op, Operand, Role, ulp},
};

/// How far an output lies from the reference. Elements that are not finite on either side are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Elements compared.
    pub elements: usize,
    /// Largest absolute error.
    pub max_abs: f64,
    /// Largest error as a fraction of the element's magnitude, the quantity that bounds limit.
    pub max_rel: f64,
    /// Largest error in units in the last place of the output's dtype, at the expected value.
    pub max_ulp: f64,
    /// The 99.9th percentile of the same.
    pub p999_ulp: f64,
    /// Sum of squared errors over the sum of squares.
    pub nmse: f64,
    /// 1 minus the cosine of the angle between the two.
    pub cosine_distance: f64,
    /// Row-major index of the largest error as a fraction of what is allowed.
    pub worst: usize,
}

impl Stats {
    /// Of an output, by the operation's bound for it.
    pub fn new(bound: &Bound, want: &Array, got: &Array) -> Stats {
        let mut stats = Stats { elements: got.data.len(), ..Stats::default() };
        let (mut ulps, mut errors, mut squares, mut worst) = (Vec::new(), 0.0, 0.0, 0.0);
        let (mut product, mut own) = (0.0, 0.0);
        for (i, (&w, &g)) in want.data.iter().zip(&got.data).enumerate() {
            let error = (g - w).abs();
            if !error.is_finite() {
                continue;
            }
            let (magnitude, allowed) = (want.magnitude(i), bound.allowed(want, i));
            stats.max_abs = stats.max_abs.max(error);
            if magnitude.is_finite() && magnitude >= f32::MIN_POSITIVE as f64 {
                stats.max_rel = stats.max_rel.max(error / magnitude);
            }
            ulps.push(error / ulp(want.spec.dtype(), w));
            (errors, squares) = (errors + error * error, squares + w * w);
            (product, own) = (product + w * g, own + g * g);
            if error > 0.0 && error / allowed > worst {
                (worst, stats.worst) = (error / allowed, i);
            }
        }
        ulps.sort_unstable_by(f64::total_cmp);
        stats.max_ulp = ulps.last().copied().unwrap_or(0.0);
        stats.p999_ulp = ulps.get((ulps.len() * 999).div_ceil(1000).saturating_sub(1)).copied().unwrap_or(0.0);
        stats.nmse = if errors == 0.0 { 0.0 } else { errors / squares.max(f64::MIN_POSITIVE) };
        let lengths = squares.sqrt() * own.sqrt();
        stats.cosine_distance =
            if errors == 0.0 { 0.0 } else { (1.0 - product / lengths.max(f64::MIN_POSITIVE)).max(0.0) };
        stats
    }

    /// Keeps the worse of the two in every respect.
    pub fn merge(&mut self, other: Stats) {
        if other.max_rel > self.max_rel {
            self.worst = other.worst;
        }
        self.elements += other.elements;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.max_rel = self.max_rel.max(other.max_rel);
        self.max_ulp = self.max_ulp.max(other.max_ulp);
        self.p999_ulp = self.p999_ulp.max(other.p999_ulp);
        self.nmse = self.nmse.max(other.nmse);
        self.cosine_distance = self.cosine_distance.max(other.cosine_distance);
    }
}

/// Compares an output's bytes with the expected arrays; `before` are the bytes it held. The inner error says what is wrong.
pub(super) fn compare(
    op: &Op,
    output: &Operand,
    expected: &Arrays,
    before: &[u8],
    got: &[u8],
) -> Result<(Stats, Result<(), String>)> {
    let (want, values) = (expected.of(output.name), Array::decode(output.spec, got)?);
    let bound = op.bound(output.name);
    let stats = Stats::new(&bound, want, &values);
    let verdict = op.accept(output.name, expected, &values).and_then(|()| {
        let old = (output.role == Role::InOut).then(|| Array::decode(output.spec, before)).transpose();
        let old = old.map_err(|e| e.to_string())?;
        if let Some(i) = old.as_ref().and_then(|old| first_disturbed(old, want, &values)) {
            return Err(format!("{}[{i}] was to keep its value and was changed", output.name));
        }
        // Blocks that must match exactly must do so in their bytes, unless the operation knows better.
        let judged = op.judge(output.name, expected, &values).is_some();
        if bound == Bound::EXACT && output.spec.dtype().is_quantized() && !judged {
            let mut stored = before.to_vec();
            want.encode(old.as_ref().map(|o| o.data.as_slice()), &mut stored).map_err(|e| e.to_string())?;
            if stored != got {
                return Err(format!("{}: the encoded bytes differ from the reference's", output.name));
            }
        }
        Ok(())
    });
    Ok((stats, verdict))
}

/// The first element of a block that the reference left alone and the device did not.
fn first_disturbed(old: &Array, want: &Array, got: &Array) -> Option<usize> {
    let (block, _) = old.spec.dtype().block();
    let kept = |i: usize| old.data[i].to_bits() == want.data[i].to_bits();
    let same = |i: usize| {
        let (a, b) = (old.data[i], got.data[i]);
        a == b || (a.is_nan() && b.is_nan())
    };
    let mut starts = (0..old.data.len()).step_by(block);
    starts.find_map(|at| (at..at + block).all(kept).then(|| (at..at + block).find(|&i| !same(i)))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Spec};

    #[test]
    fn statistics_say_where_and_how_far() {
        let spec = Spec::new(DType::F32, &[4]).expect("a spec");
        let array = |data: [f64; 4]| Array { spec, data: data.to_vec(), magnitude: Vec::new() };
        let want = array([1.0, 2.0, f64::NAN, -4.0]);
        let got = array([1.0, 2.0 + 4.0 * f32::EPSILON as f64, f64::NAN, -4.0]);
        let stats = Stats::new(&Bound::relative(1e-6), &want, &got);
        assert_eq!((stats.elements, stats.worst, stats.max_ulp), (4, 1, 2.0));
        assert_eq!(stats.max_rel, 2.0 * f32::EPSILON as f64);
        assert!(stats.nmse > 0.0 && stats.nmse < 1e-12);
        assert_eq!(Stats::new(&Bound::EXACT, &want, &want).max_abs, 0.0);
    }
}
