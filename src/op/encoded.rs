//! Results that are rounded to blocks as they are stored: how far from the numbers they may lie.

use super::Bound;
use crate::dtype::DType;

/// Formats whose blocks follow from their numbers by rounding alone; the others' encoders search.
pub(crate) const ROUNDED: &[DType] =
    &[DType::Q8_0, DType::Q8_1, DType::Q8_K, DType::Q5_0, DType::Q5_1, DType::Q4_0, DType::Q4_1];

/// The largest error of rounding to a block, as a fraction of the largest of its numbers; `None` for other formats.
fn rounding(dtype: DType) -> Option<f64> {
    let half = 2f64.powi(-10); // scales are stored as f16, and so are the smallest numbers of the last two
    Some(match dtype {
        DType::Q8_0 | DType::Q8_1 | DType::Q8_K => 0.5 / 127.0 + half,
        // Codes reach from -8 to 7 (-16 to 15): the end opposite to the largest number is a whole step away.
        DType::Q4_0 => 1.0 / 8.0 + half,
        DType::Q5_0 => 1.0 / 16.0 + half,
        // Half a step of twice the largest number, and both halves round.
        DType::Q4_1 => 1.0 / 15.0 + 1.5 * half,
        DType::Q5_1 => 1.0 / 31.0 + 1.5 * half,
        _ => return None,
    })
}

/// The bound of a result that errs by `relative` before it is stored as `dtype`; its magnitudes are to be [`encoded_magnitudes`].
pub(crate) fn encoded_bound(dtype: DType, relative: f64) -> Bound {
    match rounding(dtype) {
        Some(rounding) => Bound { relative: relative + rounding, ..Bound::EXACT },
        None => Bound::relative(relative),
    }
}

/// Makes the magnitudes of `values` those of the blocks that they are stored in: the largest of each. Others stay as they are.
pub(crate) fn encoded_magnitudes(dtype: DType, values: &[f64], magnitudes: &mut [f64]) {
    let Some(rounding) = rounding(dtype) else { return };
    // Of a scale below f16's normal numbers (and of a smallest number) half a step of theirs is lost, 127 times at most.
    let (least, lost) = (f64::exp2(-14.0), 128.0 * f64::exp2(-25.0) / rounding);
    for (magnitudes, values) in magnitudes.chunks_mut(dtype.block().0).zip(values.chunks(dtype.block().0)) {
        let largest = magnitudes.iter().chain(values).fold(0.0, |m: f64, v| m.max(v.abs()));
        magnitudes.fill(largest + if largest < 128.0 * least { lost } else { 0.0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Array, Fill, Rng, testing::spec};

    /// What `convert` makes of numbers of any size lies within the bound of a result without other errors, and near it.
    #[test]
    fn the_encoders_keep_to_the_bounds() {
        let mut rng = Rng(5);
        for &dtype in ROUNDED {
            let n = 40 * dtype.block().0;
            let mut most = 0f64;
            for scale in [1.0, 1e-3, 1e-5, 1e-7, 100.0] {
                let data: Vec<f64> = (0..n).map(|_| (scale * rng.value(Fill::Normal)) as f32 as f64).collect();
                let mut magnitude = vec![0.0; n];
                encoded_magnitudes(dtype, &data, &mut magnitude);
                let mut bytes = vec![0; spec(dtype, &[n]).span()];
                let array = Array { spec: spec(dtype, &[n]), data, magnitude };
                array.encode(None, &mut bytes).expect("encodes");
                let got = Array::decode(array.spec, &bytes).expect("decodes");
                let bound = encoded_bound(dtype, 0.0).relative;
                for (i, (want, got)) in array.data.iter().zip(&got.data).enumerate() {
                    most = most.max((want - got).abs() / (bound * array.magnitude[i]));
                }
            }
            assert!((0.5..=1.0).contains(&most), "{dtype}: {most} of what is allowed");
        }
    }
}
