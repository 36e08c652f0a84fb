//! Runs of f32 to elements of any dtype: floats in vectors, the rest as `quant::encode` does.

use super::simd::{Simd, row};
use crate::{dtype::DType, quant};

/// Encodes `n` numbers (whole blocks of a quantized type) into elements that lie `stride` apart; 1 for quantized types.
///
/// # Safety
/// `from` is readable for `n`, the elements at `to` are writable, and the two do not overlap.
#[inline(always)]
pub(crate) unsafe fn encode<S: Simd>(s: S, dtype: DType, from: *const f32, to: *mut u8, stride: usize, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => row::write(s, dtype, from, to, stride, n),
            _ => any(dtype, from, to, stride, n),
        }
    }
}

/// # Safety
/// As for [`encode`].
#[inline(never)]
unsafe fn any(dtype: DType, from: *const f32, to: *mut u8, stride: usize, n: usize) {
    let (elements, pieces) = if stride == 1 { (n, 1) } else { (1, n) };
    let bytes = dtype.bytes(elements).unwrap_or(0);
    for i in 0..pieces {
        // SAFETY: the caller's promise; spread elements are pieces of their own.
        let (from, to) = unsafe {
            let to = to.add(i * stride * bytes);
            (std::slice::from_raw_parts(from.add(i), elements), std::slice::from_raw_parts_mut(to, bytes))
        };
        // Whole blocks of a dtype that every build knows: nothing to refuse.
        quant::encode(dtype, from, to).unwrap_or_else(|e| unreachable!("{e}"));
    }
}
