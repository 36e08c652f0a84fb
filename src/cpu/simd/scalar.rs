//! Plain Rust over short arrays, which the compiler turns into whatever vectors its target has.

use half::f16;

use super::{Simd, Wide};

/// Always there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

const N: usize = 4;

#[inline(always)]
fn map<A: Copy, B>(a: [A; N], f: impl Fn(A) -> B) -> [B; N] {
    a.map(f)
}

#[inline(always)]
fn zip<A: Copy, B: Copy, C>(a: [A; N], b: [B; N], f: impl Fn(A, B) -> C) -> [C; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    const LANES: usize = N;
    type F = [f32; N];
    type I = [i32; N];
    type M = [bool; N];
    type Wide = Wide<Self, 4>;
    type Plain = Self;

    #[inline(always)]
    fn plain(self) -> Self::Plain {
        self
    }
    #[inline(always)]
    fn wide(self) -> Self::Wide {
        Wide(self)
    }

    #[inline(never)]
    fn outline<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; N] {
        [x; N]
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> [i32; N] {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; N] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: [f32; N]) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; N]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> [f32; N] {
        // SAFETY: the caller's promise, for lanes below n.
        std::array::from_fn(|i| if i < n { unsafe { p.add(i).read_unaligned() } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, v: [f32; N], n: usize) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            // SAFETY: the caller's promise, for lanes below n.
            unsafe { p.add(i).write_unaligned(x) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> [f32; N] {
        // SAFETY: the caller's promise.
        map(unsafe { p.cast::<[u16; N]>().read_unaligned() }, |h| f16::from_bits(h).to_f32_const())
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: [f32; N]) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u16; N]>().write_unaligned(map(v, |x| f16::from_f32_const(x).to_bits())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> [f32; N] {
        // SAFETY: the caller's promise.
        map(unsafe { p.cast::<[u16; N]>().read_unaligned() }, |h| f32::from_bits((h as u32) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, v: [f32; N]) {
        let round = |x: f32| {
            let b = x.to_bits();
            if x.is_nan() { (b >> 16) as u16 | 0x40 } else { ((b + 0x7fff + (b >> 16 & 1)) >> 16) as u16 }
        };
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u16; N]>().write_unaligned(map(v, round)) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> [i32; N] {
        // SAFETY: the caller's promise.
        map(unsafe { p.cast::<[i8; N]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> [i32; N] {
        // SAFETY: the caller's promise.
        map(unsafe { p.cast::<[u8; N]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn gather(self, p: *const f32, index: [i32; N]) -> [f32; N] {
        // SAFETY: the caller's promise.
        map(index, |i| unsafe { p.offset(i as isize).read_unaligned() })
    }
    #[inline(always)]
    fn f16_to_f32(self, bits: u16) -> f32 {
        f16::from_bits(bits).to_f32_const()
    }

    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    fn fma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        // Without the instruction `mul_add` is a call of a slow library function.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn min(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn round(self, a: [f32; N]) -> [f32; N] {
        // Numbers from 2^23 on are whole; adding it to smaller ones leaves no bits for a fraction.
        const WHOLE: f32 = 8388608.0;
        map(a, |x| if x.abs() < WHOLE { ((x.abs() + WHOLE) - WHOLE).copysign(x) } else { x })
    }

    #[inline(always)]
    fn to_i(self, a: [f32; N]) -> [i32; N] {
        map(self.round(a), |x| x as i32)
    }
    #[inline(always)]
    fn float(self, a: [i32; N]) -> [f32; N] {
        map(a, |x| x as f32)
    }
    #[inline(always)]
    fn bits(self, a: [f32; N]) -> [i32; N] {
        map(a, |x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn of_bits(self, a: [i32; N]) -> [f32; N] {
        map(a, |x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    fn add_i(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn mul_i(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    fn and(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, |x, y| x & y)
    }
    #[inline(always)]
    fn or(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, |x, y| x | y)
    }
    #[inline(always)]
    fn xor(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, |x, y| x ^ y)
    }
    #[inline(always)]
    fn shl<const K: u32>(self, a: [i32; N]) -> [i32; N] {
        map(a, |x| x << K)
    }
    #[inline(always)]
    fn shr<const K: u32>(self, a: [i32; N]) -> [i32; N] {
        map(a, |x| (x as u32 >> K) as i32)
    }
    #[inline(always)]
    fn sar<const K: u32>(self, a: [i32; N]) -> [i32; N] {
        map(a, |x| x >> K)
    }

    #[inline(always)]
    fn lt(self, a: [f32; N], b: [f32; N]) -> [bool; N] {
        zip(a, b, |x, y| x < y)
    }
    #[inline(always)]
    fn eq(self, a: [f32; N], b: [f32; N]) -> [bool; N] {
        zip(a, b, |x, y| x == y)
    }
    #[inline(always)]
    fn select(self, mask: [bool; N], yes: [f32; N], no: [f32; N]) -> [f32; N] {
        std::array::from_fn(|i| if mask[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    fn sum(self, a: [f32; N]) -> f32 {
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    fn max_lane(self, a: [f32; N]) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }
}
