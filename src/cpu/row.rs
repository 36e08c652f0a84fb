//! One row of a tensor, of any type and stride, copied to and from f32 in scratch memory: how kernels that go over a row more
//! than once read and write it. The copy stays in the nearest cache.

<<<<<<< HEAD
use super::{
    decode::decode_strided,
    kernel::Tensor,
    simd::{Simd, row},
};
use crate::{dtype::DType, quant};
=======
use super::{decode::decode_strided, encode::encode, kernel::Tensor, simd::Simd};
use crate::dtype::DType;
>>>>>>> ec2daa7 (CPU: scatter, segment and convolution; one encoder and one decoder of rows)

/// The widest vector in lanes: f32 buffers are padded to a multiple of it.
pub(crate) const PAD: usize = 16;

/// Elements of a buffer that holds `n` numbers and whole vectors.
pub(crate) const fn padded(n: usize) -> usize {
    n.next_multiple_of(PAD)
}

/// Elements that lie `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pointer: *mut u8,
    dtype: DType,
    stride: usize,
}

impl Row {
    /// Row `row` of a tensor, counted over all leading dimensions.
    #[inline(always)]
    pub(crate) fn of(tensor: &Tensor, row: usize) -> Row {
        Row::part(tensor, row, 0)
    }

    /// The same from column `column` on, which begins a block in a quantized format.
    #[inline(always)]
    pub(crate) fn part(tensor: &Tensor, row: usize, column: usize) -> Row {
        Row { pointer: tensor.at(row, column), dtype: tensor.dtype(), stride: tensor.spec.stride(0) }
    }

    /// From element `column` of row `row` down: the same column of the rows that follow.
    #[inline(always)]
    pub(crate) fn down(tensor: &Tensor, row: usize, column: usize) -> Row {
        Row { stride: tensor.spec.stride(1), ..Row::part(tensor, row, column) }
    }

    /// The row that begins `offset` elements (whole blocks) into a tensor.
    ///
    /// # Safety
    /// The offset lies inside the tensor.
    #[inline(always)]
    pub(crate) unsafe fn at(tensor: &Tensor, offset: usize) -> Row {
        let (elements, bytes) = tensor.dtype().block();
        // SAFETY: the caller's promise.
        let pointer = unsafe { tensor.pointer::<u8>().add(offset / elements * bytes) };
        Row { pointer, dtype: tensor.dtype(), stride: tensor.spec.stride(0) }
    }

    /// The row's elements where they are f32 side by side.
    #[inline(always)]
    pub(crate) fn direct(self) -> Option<*const f32> {
        (self.dtype == DType::F32 && self.stride == 1).then_some(self.pointer.cast_const().cast())
    }

    /// Copies the row's first `n` elements to `to`, with zeros up to the next whole vector of `s`.
    ///
    /// # Safety
    /// The row has `n` elements (whole blocks), nobody writes them, and `to` is writable for [`padded`] `(n)`.
    #[inline(always)]
    pub(crate) unsafe fn load<S: Simd>(self, s: S, n: usize, to: *mut f32) {
        // SAFETY: the caller's promises, handed on.
        unsafe {
            decode_strided(s, self.dtype, self.pointer, self.stride, to, n);
            to.add(n).write_bytes(0, n.next_multiple_of(S::LANES) - n);
        }
    }

    /// Rounds `n` numbers to the row's type, as `convert` does.
    ///
    /// # Safety
    /// The row has `n` elements (whole blocks), nobody else uses them, and `from` is readable for [`padded`] `(n)`.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd>(self, s: S, n: usize, from: *const f32) {
        // SAFETY: the caller's promises, handed on.
<<<<<<< HEAD
        unsafe {
            match self.dtype {
                DType::F32 | DType::F16 | DType::BF16 => row::write(s, self.dtype, from, self.pointer, self.stride, n),
                _ => self.store_any(n, from),
            }
        }
    }

    /// # Safety
    /// As for `store`.
    #[inline(never)]
    unsafe fn store_any(self, n: usize, from: *const f32) {
        // Elements or blocks side by side are one piece for the codec; spread ones are pieces of their own.
        let (elements, pieces) = if self.stride == 1 { (n, 1) } else { (1, n) };
        let bytes = self.dtype.bytes(elements).unwrap_or(0);
        for i in 0..pieces {
            // SAFETY: inside the row, and inside `from`.
            let (from, to) = unsafe {
                let to = self.pointer.add(i * self.stride * bytes);
                (std::slice::from_raw_parts(from.add(i), elements), std::slice::from_raw_parts_mut(to, bytes))
            };
            quant::encode(self.dtype, from, to).unwrap_or_else(|e| unreachable!("{e}"));
        }
=======
        unsafe { encode(s, self.dtype, from, self.pointer, self.stride, n) }
>>>>>>> ec2daa7 (CPU: scatter, segment and convolution; one encoder and one decoder of rows)
    }
}
