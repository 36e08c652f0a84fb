//! Creating tensors.

use std::ops::Range;

use super::Runtime;
use crate::{
    backend::View,
    dispatch::{Device, HostBytes, Stored, copy},
    dtype::DType,
    error::{Error, Result},
    layout::Spec,
    tensor::Tensor,
};

/// Creation. Without a device named, tensors go to [`Runtime::default_device`].
impl Runtime {
    /// A tensor from its elements' bytes in row-major order (little-endian; quantized: GGUF's own blocks).
    pub fn tensor(&self, dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor> {
        self.tensor_on(self.default_device(), dtype, shape, bytes)
    }

    /// As [`Runtime::tensor`], on a device.
    pub fn tensor_on(&self, device: &Device, dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor> {
        let spec = sized(dtype, shape, bytes.len())?;
        let view = View::whole(device.backend().alloc(bytes.len())?);
        device.backend().write(&view, bytes)?;
        Ok(Tensor::new(device.clone(), spec, Stored::Plain(view)))
    }

    /// An f32 tensor.
    pub fn from_f32(&self, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        self.from_f32_on(self.default_device(), shape, values)
    }

    /// As [`Runtime::from_f32`], on a device.
    pub fn from_f32_on(&self, device: &Device, shape: &[usize], values: &[f32]) -> Result<Tensor> {
        self.tensor_on(device, DType::F32, shape, bytemuck::cast_slice(values))
    }

    /// An i32 tensor: indices, positions, lengths.
    pub fn from_i32(&self, shape: &[usize], values: &[i32]) -> Result<Tensor> {
        self.from_i32_on(self.default_device(), shape, values)
    }

    /// As [`Runtime::from_i32`], on a device.
    pub fn from_i32_on(&self, device: &Device, shape: &[usize], values: &[i32]) -> Result<Tensor> {
        self.tensor_on(device, DType::I32, shape, bytemuck::cast_slice(values))
    }

    /// A tensor of zero bytes: a cache, a state, an output of one's own.
    pub fn zeros(&self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        self.zeros_on(self.default_device(), dtype, shape)
    }

    /// As [`Runtime::zeros`], on a device.
    pub fn zeros_on(&self, device: &Device, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let spec = Spec::new(dtype, shape)?;
        let view = View::whole(device.backend().alloc(spec.span())?);
        Ok(Tensor::new(device.clone(), spec, Stored::Plain(view)))
    }

    /// A tensor of undefined contents from the device's pool: for outputs.
    pub fn empty_on(&self, device: &Device, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let spec = Spec::new(dtype, shape)?;
        Ok(Tensor::new(device.clone(), spec, Stored::Plain(device.pooled(spec.span())?)))
    }

    /// A constant `[.., n, k]` operand of matrix products, stored once, in the order the device's kernels read: packed a chunk
    /// of rows at a time, so that no second full copy ever exists. What other operations read too (an embedding table
    /// that is also the output matrix) is uploaded with [`Runtime::tensor`] or adopted.
    pub fn weight(&self, dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor> {
        self.weight_on(self.default_device(), dtype, shape, bytes)
    }

    /// As [`Runtime::weight`], on a device.
    pub fn weight_on(&self, device: &Device, dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor> {
        let spec = sized(dtype, shape, bytes.len())?;
        Ok(Tensor::new(device.clone(), spec, self.0.dispatcher.weight(device, spec, bytes, None)?))
    }

    /// As [`Runtime::weight`], from part of memory that stays as it is (a mapped file): read in place where the device can and
    /// no packing pays. Any operation may use it: another form is made from the memory when one is first needed.
    pub fn weight_adopted(
        &self,
        dtype: DType,
        shape: &[usize],
        bytes: HostBytes,
        range: Range<usize>,
    ) -> Result<Tensor> {
        self.weight_adopted_on(self.default_device(), dtype, shape, bytes, range)
    }

    /// As [`Runtime::weight_adopted`], on a device.
    pub fn weight_adopted_on(
        &self,
        device: &Device,
        dtype: DType,
        shape: &[usize],
        bytes: HostBytes,
        range: Range<usize>,
    ) -> Result<Tensor> {
        let all = bytes.clone();
        let part = (*all).as_ref().get(range.clone());
        let part = part.ok_or_else(|| Error::invalid(format_args!("bytes {range:?}"), "outside the memory given"))?;
        let spec = sized(dtype, shape, part.len())?;
        let stored = self.0.dispatcher.weight(device, spec, part, Some((bytes, range)))?;
        Ok(Tensor::new(device.clone(), spec, stored))
    }

    /// A dense copy on a device, made through the host; the tensor itself where it is there already.
    pub fn to(&self, tensor: &Tensor, device: &Device) -> Result<Tensor> {
        if tensor.device() == device {
            return Ok(tensor.clone());
        }
        let moved = self.zeros_on(device, tensor.dtype(), tensor.shape())?;
        match (tensor.view(), moved.view()) {
            (Some(from), Some(to)) if tensor.spec().is_dense() => {
                copy(tensor.device(), &from.slice(0, to.len())?, device, &to)?;
            }
            _ => moved.write(&tensor.read::<u8>()?)?,
        }
        Ok(moved)
    }
}

fn sized(dtype: DType, shape: &[usize], bytes: usize) -> Result<Spec> {
    let spec = Spec::new(dtype, shape)?;
    if spec.bytes() != bytes {
        return Err(Error::invalid(spec, format_args!("needs {} bytes, {bytes} given", spec.bytes())));
    }
    Ok(spec)
}
