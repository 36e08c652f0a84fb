//! Runs of elements of any float type and stride, to and from f32 in a buffer.

use super::{Element, Simd, element};
use crate::dtype::DType;

/// Reads `n` elements, `stride` elements apart (0 repeats the first), as f32. Other dtypes than floats give zeros.
///
/// # Safety
/// The elements are readable, `out` is writable for `n`, and the two do not overlap.
#[inline(always)]
pub(crate) unsafe fn read<S: Simd>(s: S, dtype: DType, from: *const u8, stride: usize, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    let known = element!(dtype, T => unsafe { read_as::<S, T>(s, from.cast(), stride, out, n) });
    debug_assert!(known.is_some());
}

/// Writes `n` f32, rounded to nearest even, `stride` elements apart.
///
/// # Safety
/// The places are writable, `from` is readable for `n`, and the two do not overlap.
#[inline(always)]
pub(crate) unsafe fn write<S: Simd>(s: S, dtype: DType, from: *const f32, to: *mut u8, stride: usize, n: usize) {
    // SAFETY: the caller's promise.
    let known = element!(dtype, T => unsafe { write_as::<S, T>(s, from, to.cast(), stride, n) });
    debug_assert!(known.is_some());
}

#[inline(always)]
unsafe fn read_as<S: Simd, T: Element>(s: S, from: *const T, stride: usize, out: *mut f32, n: usize) {
    let whole = if stride == 1 { n - n % S::LANES } else { 0 };
    // SAFETY: indices stay below n.
    unsafe {
        let mut i = 0;
        while i < whole {
            s.store(out.add(i), T::load(s, from.add(i)));
            i += S::LANES;
        }
        while i < n {
            *out.add(i) = (*from.add(i * stride)).get();
            i += 1;
        }
    }
}

#[inline(always)]
unsafe fn write_as<S: Simd, T: Element>(s: S, from: *const f32, to: *mut T, stride: usize, n: usize) {
    let whole = if stride == 1 { n - n % S::LANES } else { 0 };
    // SAFETY: indices stay below n.
    unsafe {
        let mut i = 0;
        while i < whole {
            T::store(s, to.add(i), s.load(from.add(i)));
            i += S::LANES;
        }
        while i < n {
            *to.add(i * stride) = T::of(*from.add(i));
            i += 1;
        }
    }
}
