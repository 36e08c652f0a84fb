//! Tensors: memory on a device, with a dtype, a shape and strides.

use std::{fmt, ops::Range};

use arrayvec::ArrayVec;
use bytemuck::Pod;

use crate::{
    backend::View,
    dispatch::{Arg, Device, Stored, missing},
    dtype::DType,
    error::{Error, Result},
    layout::{MAX_RANK, Spec},
    quant,
};

/// A tensor on one of a [`Runtime`](crate::Runtime)'s devices. Cloning and viewing share the memory, which lives as long as any of
/// them, and as long as enqueued work needs it.
///
/// ```
/// let rt = tesela::Runtime::new()?;
/// let x = rt.from_f32(&[2, 3], &[1., 2., 3., 4., 5., 6.])?;
/// assert_eq!(x.transpose(0, 1)?.read_f32()?, [1., 4., 2., 5., 3., 6.]);
/// assert_eq!(x.slice(1, 1..2)?.read::<f32>()?, [2., 5.]);
/// # Ok::<(), tesela::Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor {
    device: Device,
    spec: Spec,
    stored: Stored,
}

impl Tensor {
    pub(crate) fn new(device: Device, spec: Spec, stored: Stored) -> Tensor {
        Tensor { device, spec, stored }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.spec.dtype()
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        self.spec.shape()
    }

    /// Strides in elements.
    pub fn strides(&self) -> &[usize] {
        self.spec.strides()
    }

    /// Dtype, shape and strides: what an [`Op`](crate::Op) is described with.
    pub fn spec(&self) -> Spec {
        self.spec
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its memory, where it is held plain; `None` for a packed weight.
    pub fn view(&self) -> Option<View> {
        self.plain().ok()
    }

    /// The name of the packed order a weight is held in; `None` where it is held plain.
    pub fn packing(&self) -> Option<&'static str> {
        match &self.stored {
            Stored::Plain(_) => None,
            Stored::Weight(w) => w.packing(),
        }
    }

    pub(crate) fn arg(&self) -> Arg<'_> {
        Arg { device: &self.device, spec: &self.spec, stored: &self.stored }
    }

    /// Part of one dimension. Fails where the range leaves it, or would cut a quantized block.
    pub fn slice(&self, dim: usize, range: Range<usize>) -> Result<Tensor> {
        let n = self.extent(dim)?;
        if range.start > range.end || range.end > n {
            return Err(self.invalid(format_args!("{range:?} leaves dimension {dim} of {n}")));
        }
        let (block, bytes) = self.dtype().block();
        let offset = range.start * self.strides()[dim];
        if !offset.is_multiple_of(block) {
            return Err(self.invalid(format_args!("element {offset} is inside a block of {block}")));
        }
        let mut shape = list(self.shape());
        shape[dim] = range.len();
        self.viewed(&shape, self.strides(), offset / block * bytes)
    }

    /// Two dimensions exchanged.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Tensor> {
        self.extent(a)?;
        self.extent(b)?;
        let (mut shape, mut strides) = (list(self.shape()), list(self.strides()));
        shape.swap(a, b);
        strides.swap(a, b);
        self.viewed(&shape, &strides, 0)
    }

    /// Dimensions in another order: dimension `i` of the result is `order[i]` of this.
    pub fn permute(&self, order: &[usize]) -> Result<Tensor> {
        let rank = self.shape().len();
        if order.len() != rank || !(0..rank).all(|i| order.contains(&i)) {
            return Err(self.invalid(format_args!("{order:?} is no order of {rank} dimensions")));
        }
        let pick = |all: &[usize]| order.iter().map(|&i| all[i]).collect::<List>();
        self.viewed(&pick(self.shape()), &pick(self.strides()), 0)
    }

    /// The same elements in another shape. Dense tensors only.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if !self.spec.is_dense() {
            return Err(self.invalid("only a dense tensor can be reshaped; `convert` it into a dense one first"));
        }
        let spec = Spec::new(self.dtype(), shape)?;
        if spec.numel() != self.spec.numel() {
            return Err(self.invalid(format_args!("{} elements cannot be {shape:?}", self.spec.numel())));
        }
        let stored = if spec == self.spec { self.stored.clone() } else { Stored::Plain(self.plain()?) };
        Ok(Tensor { device: self.device.clone(), spec, stored })
    }

    /// Repeated to a larger shape without a copy: aligned from the last dimension, extents of 1 repeat.
    pub fn broadcast(&self, shape: &[usize]) -> Result<Tensor> {
        let spec = self.spec.broadcast(shape)?;
        self.viewed(spec.shape(), spec.strides(), 0)
    }

    /// Copies host bytes in, in row-major order. Dense tensors only, and not weights.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        if let Stored::Weight(_) = self.stored {
            return Err(self.invalid("a weight is constant; upload with `tensor` what is written again"));
        }
        if !self.spec.is_dense() || bytes.len() != self.spec.bytes() {
            let why =
                format_args!("{} bytes given; a dense tensor of {} bytes is written", bytes.len(), self.spec.bytes());
            return Err(self.invalid(why));
        }
        self.device.backend().write(&self.plain()?.slice(0, bytes.len())?, bytes)
    }

    /// Copies the elements' bytes out in row-major order, waiting for the work before. `bytes` has exactly their length.
    pub fn read_into(&self, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() != self.spec.bytes() {
            return Err(self.invalid(format_args!("{} bytes of room, {} needed", bytes.len(), self.spec.bytes())));
        }
        if bytes.is_empty() {
            return self.device.sync();
        }
        if let Stored::Weight(w) = &self.stored
            && let Some(source) = w.source()
        {
            let plain = source.slice();
            if plain.len() != bytes.len() {
                return Err(self.invalid("the memory it was adopted from has changed"));
            }
            bytes.copy_from_slice(plain);
            return Ok(());
        }
        let span = self.plain()?.slice(0, self.spec.span())?;
        if self.spec.is_dense() {
            return self.device.backend().read(&span, bytes);
        }
        let mut all = self.room(span.len(), 0u8)?;
        self.device.backend().read(&span, &mut all)?;
        self.gather(&all, bytes);
        Ok(())
    }

    /// The elements among the bytes that they span, in row-major order.
    fn gather(&self, all: &[u8], bytes: &mut [u8]) {
        if self.spec.is_dense() {
            return bytes.copy_from_slice(all);
        }
        let (_, size) = self.dtype().block();
        for (at, out) in self.spec.offsets().zip(bytes.chunks_exact_mut(size)) {
            out.copy_from_slice(&all[at..at + size]);
        }
    }

    /// The elements in row-major order. `T` is as large as an element (`f32`, `i32`, `half::f16`, ...), or `u8` for the bytes.
    pub fn read<T: Pod>(&self) -> Result<Vec<T>> {
        let mut out = self.elements()?;
        self.read_into(bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// As [`Tensor::read`], without waiting for the device, as browsers need it: what the work launched so far makes of it, whatever is launched
    /// before the future is awaited.
    ///
    /// ```
    /// # async fn example(logits: &tesela::Tensor) -> tesela::Result<()> {
    /// let later = logits.read_later::<f32>()?;
    /// // ... launch the next step ...
    /// let values: Vec<f32> = later.await?;
    /// # Ok(()) }
    /// ```
    pub fn read_later<T: Pod + Send>(&self) -> Result<impl Future<Output = Result<Vec<T>>> + Send + use<T>> {
        let (mut out, mut reading) = (self.elements::<T>()?, None);
        if matches!(&self.stored, Stored::Weight(w) if w.source().is_some()) {
            self.read_into(bytemuck::cast_slice_mut(&mut out))?; // from host memory
        } else if !out.is_empty() {
            reading = Some(self.device.backend().read_later(&self.plain()?.slice(0, self.spec.span())?)?);
        }
        let tensor = self.clone();
        Ok(async move {
            if let Some(reading) = reading {
                let all = reading.await?;
                if all.len() != tensor.spec.span() {
                    return Err(tensor.invalid(format_args!(
                        "the device gave {} bytes of {}",
                        all.len(),
                        tensor.spec.span()
                    )));
                }
                tensor.gather(&all, bytemuck::cast_slice_mut(&mut out));
            }
            Ok(out)
        })
    }

    /// Host memory for its elements as `T`.
    fn elements<T: Pod>(&self) -> Result<Vec<T>> {
        let size = size_of::<T>();
        let (elements, bytes) = self.dtype().block();
        if size == 0 || (size != 1 && (elements > 1 || size != bytes)) {
            return Err(self.invalid(format_args!("elements cannot be read as {size} bytes each; `read_f32` decodes")));
        }
        self.room(self.spec.bytes() / size, T::zeroed())
    }

    /// The elements in row-major order, converted to f32 from whatever dtype.
    pub fn read_f32(&self) -> Result<Vec<f32>> {
        let mut out = self.room(self.spec.numel(), 0f32)?;
        quant::decode(self.dtype(), &self.read::<u8>()?, &mut out)?;
        Ok(out)
    }

    /// Host memory for its elements: a view may repeat a few bytes to more than there is room for.
    fn room<T: Clone>(&self, len: usize, value: T) -> Result<Vec<T>> {
        let mut room = Vec::new();
        let bytes = len.saturating_mul(size_of::<T>());
        let oom = |_| Error::OutOfMemory { device: "host".into(), bytes, available: None };
        room.try_reserve_exact(len).map_err(oom)?;
        room.resize(len, value);
        Ok(room)
    }

    fn plain(&self) -> Result<View> {
        match &self.stored {
            Stored::Plain(view) => Ok(view.clone()),
            Stored::Weight(w) => w.form(None).ok_or_else(|| missing(&self.spec, None)),
        }
    }

    fn viewed(&self, shape: &[usize], strides: &[usize], offset: usize) -> Result<Tensor> {
        let spec = Spec::strided(self.dtype(), shape, strides)?;
        let view = self.plain()?;
        // An empty tensor's offset may lie beyond the last element.
        let view = view.slice(if spec.numel() == 0 { 0 } else { offset }, spec.span())?;
        Ok(Tensor { device: self.device.clone(), spec, stored: Stored::Plain(view) })
    }

    fn extent(&self, dim: usize) -> Result<usize> {
        self.shape().get(dim).copied().ok_or_else(|| self.invalid(format_args!("no dimension {dim}")))
    }

    fn invalid(&self, why: impl fmt::Display) -> Error {
        Error::invalid(format_args!("tensor {}", self.spec), why)
    }
}

type List = ArrayVec<usize, MAX_RANK>;

fn list(items: &[usize]) -> List {
    items.iter().copied().collect()
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} on {})", self.spec, self.device.info().id)
    }
}
