//! Dense f64 arrays: what the references compute on.

use super::Op;
use crate::{
    error::{Error, Result},
    layout::Spec,
    quant,
};

/// The values of one operand in row-major order of its shape, whatever its strides were.
#[derive(Debug, Clone)]
pub struct Array {
    /// The operand's spec.
    pub spec: Spec,
    /// One number per element.
    pub data: Vec<f64>,
    /// Per element, the sum of the absolute values that were added up to make it: what rounding errors are relative to.
    /// Empty means: the value's own absolute value.
    pub magnitude: Vec<f64>,
}

impl Array {
    /// Zeros.
    pub fn zeros(spec: Spec) -> Self {
        Array { spec, data: vec![0.0; spec.numel()], magnitude: Vec::new() }
    }

    /// Decodes an operand's memory. [`Invalid`](Error::Invalid) where it is shorter than the spec's span.
    pub fn decode(spec: Spec, bytes: &[u8]) -> Result<Self> {
        spans(&spec, bytes.len())?;
        let mut array = Array::zeros(spec);
        let (elements, size) = spec.dtype().block();
        if spec.is_dense() {
            quant::decode_f64(spec.dtype(), &bytes[..spec.span()], &mut array.data)?;
            return Ok(array);
        }
        for (at, out) in spec.offsets().zip(array.data.chunks_exact_mut(elements)) {
            quant::decode_f64(spec.dtype(), &bytes[at..at + size], out)?;
        }
        Ok(array)
    }

    /// Encodes the values into an operand's memory. With `old` values given, runs that did not change keep their bytes.
    /// [`Invalid`](Error::Invalid) where the memory is shorter than the spec's span, or values are more or fewer than its elements.
    pub fn encode(&self, old: Option<&[f64]>, bytes: &mut [u8]) -> Result<()> {
        let (spec, data) = (&self.spec, &self.data);
        spans(spec, bytes.len())?;
        if let Some(n) = [data.len(), old.map_or(data.len(), <[f64]>::len)].into_iter().find(|&n| n != spec.numel()) {
            return Err(Error::invalid(spec, format_args!("{n} values for {} elements", spec.numel())));
        }
        let (elements, size) = spec.dtype().block();
        if spec.is_dense() && old.is_none() {
            return quant::encode_f64(spec.dtype(), data, &mut bytes[..spec.span()]);
        }
        for (i, at) in spec.offsets().enumerate() {
            let run = i * elements..(i + 1) * elements;
            let same =
                |old: &[f64]| old[run.clone()].iter().zip(&data[run.clone()]).all(|(a, b)| a.to_bits() == b.to_bits());
            if !old.is_some_and(same) {
                quant::encode_f64(spec.dtype(), &data[run.clone()], &mut bytes[at..at + size])?;
            }
        }
        Ok(())
    }

    /// Extents.
    pub fn shape(&self) -> &[usize] {
        self.spec.shape()
    }

    /// Row `i` of the array seen as `[rows, last extent]`; nothing beyond the last.
    pub fn row(&self, i: usize) -> &[f64] {
        let n = self.spec.dim(0);
        let start = i.saturating_mul(n);
        self.data.get(start..start.saturating_add(n)).unwrap_or_default()
    }

    /// The values repeated to a shape they broadcast to ([`Spec::broadcast`]), in row-major order.
    pub(crate) fn expand(&self, shape: &[usize]) -> Vec<f64> {
        let missing = shape.len() - self.spec.rank();
        let own = self.spec.dense();
        (0..shape.iter().product())
            .map(|i: usize| {
                let (mut rest, mut at) = (i, 0);
                for d in (missing..shape.len()).rev() {
                    let (extent, index) = (own.shape()[d - missing], rest % shape[d]);
                    rest /= shape[d];
                    at += if extent == 1 { 0 } else { index * own.strides()[d - missing] };
                }
                self.data[at]
            })
            .collect()
    }

    /// What errors of element `i` are relative to; 0 beyond the last.
    pub fn magnitude(&self, i: usize) -> f64 {
        self.magnitude.get(i).copied().unwrap_or_else(|| self.data.get(i).map_or(0.0, |v| v.abs()))
    }
}

fn spans(spec: &Spec, bytes: usize) -> Result<()> {
    if bytes < spec.span() {
        return Err(Error::invalid(spec, format_args!("{bytes} bytes, it spans {}", spec.span())));
    }
    Ok(())
}

/// The operands of one operation by name: inputs filled in, outputs zero, in/out operands with their old values.
#[derive(Debug, Clone, Default)]
pub struct Arrays(Vec<(&'static str, Array)>);

impl Arrays {
    /// Adds an operand.
    pub fn push(&mut self, name: &'static str, array: Array) {
        self.0.push((name, array));
    }

    /// The operand, where the operation has it.
    pub fn get(&self, name: &str) -> Option<&Array> {
        self.0.iter().find(|a| a.0 == name).map(|a| &a.1)
    }

    /// The operand to be changed, where the operation has it.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Array> {
        self.0.iter_mut().find(|a| a.0 == name).map(|a| &mut a.1)
    }

    /// In operand order.
    pub fn iter(&self) -> impl Iterator<Item = &(&'static str, Array)> {
        self.0.iter()
    }

    /// `Err` unless each operand is there, in its shape and with as many values: what [`of`](Arrays::of) relies on.
    pub(crate) fn check(&self, op: &Op) -> Result<()> {
        for o in &op.operands() {
            let Some(array) = self.get(o.name) else {
                return Err(Error::invalid(op, format_args!("the values of {} are missing", o.name)));
            };
            let (shape, n) = (array.shape(), array.data.len());
            if shape != o.spec.shape() || n != o.spec.numel() {
                let why = format_args!("{} has {n} values in {shape:?}, expected {:?}", o.name, o.spec.shape());
                return Err(Error::invalid(op, why));
            }
        }
        Ok(())
    }

    /// An operand of an operation these arrays were [checked](Arrays::check) against.
    pub(crate) fn of(&self, name: &str) -> &Array {
        self.get(name).unwrap_or_else(|| unreachable!("operand {name}"))
    }

    /// Replaces an operand's values, for a reference that computed them aside.
    pub(crate) fn set(&mut self, name: &str, data: Vec<f64>) {
        self.set_with(name, data, Vec::new());
    }

    /// Replaces an operand's values and what their errors are relative to.
    pub(crate) fn set_with(&mut self, name: &str, data: Vec<f64>, magnitude: Vec<f64>) {
        if let Some(array) = self.get_mut(name) {
            (array.data, array.magnitude) = (data, magnitude);
        }
    }
}
