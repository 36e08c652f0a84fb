//! Float element types as algorithms see them: loaded to f32 lanes, stored from them.

use half::{bf16, f16};

use super::{Simd, WIDEST};

/// f32, f16 or bf16 in memory.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// # Safety
    /// `p` is readable for `S::LANES` elements.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F;
    /// # Safety
    /// `p` is writable for `S::LANES` elements.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, v: S::F);
    /// The first `n <= S::LANES` elements, zeros beyond.
    /// # Safety
    /// `p` is readable for `n` elements.
    unsafe fn load_partial<S: Simd>(s: S, p: *const Self, n: usize) -> S::F;
    /// One element as f32.
    fn get(self) -> f32;
    /// Rounded to nearest, ties to even.
    fn of(x: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut f32, v: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store(p, v) }
    }
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(s: S, p: *const f32, n: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_partial(p, n) }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn of(x: f32) -> f32 {
        x
    }
}

macro_rules! half_element {
    ($Type:ident, $load:ident, $store:ident) => {
        impl Element for $Type {
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, p: *const $Type) -> S::F {
                // SAFETY: the caller's promise; the type is a transparent u16.
                unsafe { s.$load(p.cast()) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(s: S, p: *mut $Type, v: S::F) {
                // SAFETY: the caller's promise; the type is a transparent u16.
                unsafe { s.$store(p.cast(), v) }
            }
            #[inline(always)]
            unsafe fn load_partial<S: Simd>(s: S, p: *const $Type, n: usize) -> S::F {
                let mut lanes = [0u16; WIDEST];
                // SAFETY: the caller's promise for `p`; n and LANES are at most WIDEST.
                unsafe {
                    std::ptr::copy_nonoverlapping(p.cast(), lanes.as_mut_ptr(), n);
                    s.$load(lanes.as_ptr())
                }
            }
            #[inline(always)]
            fn get(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn of(x: f32) -> $Type {
                $Type::from_f32(x)
            }
        }
    };
}
half_element!(f16, load_f16, store_f16);
half_element!(bf16, load_bf16, store_bf16);

/// `element!(dtype, T => expression)`: the expression with `T` the element type, as `Some`; `None` where the dtype is no float.
macro_rules! element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::F32 => {
                type $T = f32;
                Some($body)
            }
            $crate::dtype::DType::F16 => {
                type $T = half::f16;
                Some($body)
            }
            $crate::dtype::DType::BF16 => {
                type $T = half::bf16;
                Some($body)
            }
            _ => None,
        }
    };
}
pub(crate) use element;
