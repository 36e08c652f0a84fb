//! One row of a tensor, of any type and stride, copied to and from f32 in scratch memory: how kernels that go over a row more
//! than once read and write it. The copy stays in the nearest cache.

use super::{
    decode::decode_strided,
    encode::encode,
    kernel::{Args, Tensor},
    simd::Simd,
};
use crate::{dtype::DType, layout::Spec};

/// The widest vector in lanes: f32 buffers are padded to a multiple of it.
pub(crate) const PAD: usize = 16;

/// Elements of a buffer that holds `n` numbers and whole vectors.
pub(crate) const fn padded(n: usize) -> usize {
    n.next_multiple_of(PAD)
}

/// True for a result that is stored past the caches: one that a second cache does not hold, and that is not computed in place. Each line
/// that is stored the usual way is read first, a third of the traffic of one operand. Rows of 4096 f32 multiplied by a number, store,
/// stream and `memcpy` in turns, medians, one thread: 64 rows 24, 15, 18 GB/s; 256 rows 12.3, 14.6, 12.9; 512 rows 10.0, 14.9, 12.3;
/// two threads, 512 rows 9.7, 15.1, 11.8.
pub(crate) fn large(args: &Args, out: &str) -> bool {
    const LARGE: usize = if cfg!(test) { 4 << 10 } else { 4 << 20 }; // small enough for the tests' sizes to reach it
    let Some(t) = args.get(out) else { return false };
    t.spec.bytes() >= LARGE && args.alone(out)
}

/// Elements of a task of work that is the same for all: at least so many, and more where there are enough tasks for every thread all the
/// same. What was streamed is waited for at a task's end.
pub(crate) fn task_elements(least: usize, of: &Spec, threads: usize) -> usize {
    least.max(of.numel() / (8 * threads.max(1)))
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

    /// The row that begins `elements` further on, of a type without blocks.
    ///
    /// # Safety
    /// It lies inside the tensor.
    #[inline(always)]
    pub(crate) unsafe fn ahead(self, elements: usize) -> Row {
        // SAFETY: the caller's promise.
        Row { pointer: unsafe { self.pointer.add(elements * self.dtype.block().1) }, ..self }
    }

    /// Where the row begins.
    #[inline(always)]
    pub(crate) fn pointer(self) -> *const u8 {
        self.pointer
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
        unsafe { encode(s, self.dtype, from, self.pointer, self.stride, n) }
    }

    /// True where the row's `n` elements are f32 side by side and fill whole vectors: kernels then compute on them where they lie.
    #[inline(always)]
    pub(crate) fn whole<S: Simd>(self, _: S, n: usize) -> bool {
        self.direct().is_some() && n.is_multiple_of(S::LANES)
    }

    /// The row's `n` elements in whole vectors: where they lie, or loaded to `buffer`.
    ///
    /// # Safety
    /// As for `load`.
    #[inline(always)]
    pub(crate) unsafe fn read<S: Simd>(self, s: S, n: usize, buffer: *mut f32) -> *const f32 {
        if self.whole(s, n) {
            return self.pointer.cast();
        }
        // SAFETY: the caller's promises.
        unsafe { self.load(s, n, buffer) };
        buffer
    }

    /// Where to write whole vectors of the row: its own place, or `buffer`, to be [`put`](Row::put).
    #[inline(always)]
    pub(crate) fn place<S: Simd>(self, s: S, n: usize, buffer: *mut f32) -> *mut f32 {
        if self.whole(s, n) { self.pointer.cast() } else { buffer }
    }

    /// Where whole vectors of the row may be [streamed](Simd::stream): its own place, where that is aligned and [`large`] says that it pays.
    #[inline(always)]
    pub(crate) fn past<S: Simd>(self, s: S, n: usize, large: bool) -> Option<*mut f32> {
        let fits = large && self.whole(s, n) && self.pointer.addr().is_multiple_of(S::LANES * size_of::<f32>());
        fits.then_some(self.pointer.cast())
    }

    /// Stores what was written to [`place`](Row::place).
    ///
    /// # Safety
    /// As for `store`.
    #[inline(always)]
    pub(crate) unsafe fn put<S: Simd>(self, s: S, n: usize, from: *const f32) {
        if !self.whole(s, n) {
            // SAFETY: the caller's promises.
            unsafe { self.store(s, n, from) };
        }
    }
}
