//! Dense f64 arrays: what the references compute on.

use std::ops::{Index, IndexMut};

use crate::{error::Result, layout::Spec, quant};

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

    /// Decodes an operand's memory, which is at least as long as the spec's span.
    pub fn decode(spec: Spec, bytes: &[u8]) -> Result<Self> {
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
    pub fn encode(&self, old: Option<&[f64]>, bytes: &mut [u8]) -> Result<()> {
        let (spec, data) = (&self.spec, &self.data);
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

    /// Row `i` of the array seen as `[rows, last extent]`.
    pub fn row(&self, i: usize) -> &[f64] {
        let n = self.spec.dim(0);
        &self.data[i * n..(i + 1) * n]
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

    /// What errors of element `i` are relative to.
    pub fn magnitude(&self, i: usize) -> f64 {
        self.magnitude.get(i).copied().unwrap_or_else(|| self.data[i].abs())
    }
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

    /// Replaces an operand's values, for a reference that computed them aside.
    pub fn set(&mut self, name: &str, data: Vec<f64>) {
        self[name].data = data;
    }

    /// Replaces an operand's values and what their errors are relative to.
    pub fn set_with(&mut self, name: &str, data: Vec<f64>, magnitude: Vec<f64>) {
        self[name].data = data;
        self[name].magnitude = magnitude;
    }

    /// In operand order.
    pub fn iter(&self) -> impl Iterator<Item = &(&'static str, Array)> {
        self.0.iter()
    }
}

impl Index<&str> for Arrays {
    type Output = Array;
    /// Panics where the operand is absent: for names the operation always has.
    fn index(&self, name: &str) -> &Array {
        let found = self.0.iter().find(|a| a.0 == name);
        &found.unwrap_or_else(|| unreachable!("operand {name}")).1
    }
}

impl IndexMut<&str> for Arrays {
    fn index_mut(&mut self, name: &str) -> &mut Array {
        let found = self.0.iter_mut().find(|a| a.0 == name);
        &mut found.unwrap_or_else(|| unreachable!("operand {name}")).1
    }
}
