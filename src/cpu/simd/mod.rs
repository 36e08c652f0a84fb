//! The instruction sets: a tiny trait, one file for each set, no algorithms in those files.
//!
//! An algorithm is a generic function `#[inline(always)] unsafe fn f<S: Simd>(s: S, ..)`, entered with [`simd!`]:
//! `simd!(isa, s => f(s, ..))`. A value of a type that implements [`Simd`] proves that the processor has the instructions, so
//! their arithmetic is safe to call; what takes a pointer is unsafe. All of an algorithm must be inlined into the entered function, which
//! alone is compiled with the instructions enabled: mark helpers `#[inline(always)]`, write no closures between them (a
//! closure is a function of its own), or let it call [`Simd::outline`]; and call [`Pool::run`](super::pool::Pool::run) outside, `simd!` inside its tasks.

/// A safe method from an expression of intrinsics that touch no memory.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! lanes {
    ($($name:ident($($a:ident: $t:ty),*) -> $r:ty = $e:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($a: $t),*) -> $r {
            // SAFETY: `self` proves that the processor has the instructions.
            unsafe { $e }
        })*
    };
}

/// An unsafe method from an expression of intrinsics that read or write at a pointer.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! memory {
    ($($name:ident($($a:ident: $t:ty),*) $(-> $r:ty)? = $e:expr;)*) => {
        $(#[inline(always)]
        unsafe fn $name(self, $($a: $t),*) $(-> $r)? {
            // SAFETY: `self` proves that the processor has the instructions; the caller answers for the pointer.
            unsafe { $e }
        })*
    };
}

/// A function that calls `f`, compiled with the instructions: where a value of a type proves that they were detected.
#[cfg(target_arch = "x86_64")]
macro_rules! compiled {
    ($(#[$inline:meta])* $features:literal, $f:ident) => {{
        #[target_feature(enable = $features)]
        $(#[$inline])*
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: a value of the type exists only where the instructions were detected.
        unsafe { inner($f) }
    }};
}
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod dot;
mod element;
mod isa;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod row;
mod scalar;
mod wide;

#[cfg(target_arch = "x86_64")]
pub(crate) use {avx2::Avx2, avx512::Avx512, dot::DotBf16};

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{DOTPROD, I8MM, Neon, PLAIN};

pub(crate) use element::{Element, element};
pub(crate) use isa::Isa;
pub(crate) use scalar::Scalar;
use wide::Wide;

/// The widest vector in lanes.
pub(crate) const WIDEST: usize = 16;
/// Bytes of a run of [`Simd::add_halves`].
pub(crate) const HALVES_RUN: usize = 64;
/// Bytes from four elements of k to the next in [`Simd::add_run`].
pub(crate) const RUN_PITCH: usize = 128;

/// Vectors of f32 with the integers and masks that go with them. Every operation is lane by lane unless it says otherwise.
pub(crate) trait Simd: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// Lanes of a vector.
    const LANES: usize;
    /// Vector registers.
    const REGISTERS: usize = 16;
    /// Registers that a vector takes.
    const PARTS: usize = 1;
    /// True where products of bytes are faster than those of f32.
    const DOTS: bool = false;
    /// True where `dot_signed` takes less than `dot`.
    const SIGNED: bool = false;
    /// True where `add_run` takes less than both.
    const RUNS: bool = false;
    /// True where products of bytes are made of products of 16 bits, to which they are best widened once: `add_halves`.
    const HALVES: bool = false;
    /// True where products of bf16 have instructions of their own.
    const PAIRS: bool = false;
    /// f32 lanes.
    type F: Copy;
    /// i32 lanes.
    type I: Copy;
    /// A yes or no per lane.
    type M: Copy;
    /// The same set with vectors of 64 bytes, which are several registers where those are shorter.
    type Wide: Simd;
    fn wide(self) -> Self::Wide;
    /// The same vectors without the instructions for products, for what needs none: compiled once for all sets that differ in those.
    type Plain: Simd<F = Self::F, I = Self::I>;
    fn plain(self) -> Self::Plain;

    /// Calls `f` as a function of its own, compiled with the instructions: for large bodies with several callers.
    fn outline<R>(self, f: impl FnOnce() -> R) -> R;

    fn splat(self, x: f32) -> Self::F;
    fn splat_i(self, x: i32) -> Self::I;

    /// # Safety
    /// `p` is readable for `LANES` elements (so for all loads), in any alignment.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// # Safety
    /// `p` is writable for `LANES` elements (so for all stores), in any alignment.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    /// As `store`, past the caches: no line is read before it is written. [`Simd::fence`] follows the last.
    /// # Safety
    /// As for `store`, and `p` is a multiple of a vector's size.
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: Self::F) {
        // SAFETY: the caller's promise.
        unsafe { self.store(p, v) }
    }
    /// Lets other threads see what was streamed, once they are told that it is there.
    #[inline(always)]
    fn fence(self) {}
    /// The first `n <= LANES` elements, zeros beyond; touches only those.
    /// # Safety
    /// `p` is readable for `n` elements.
    unsafe fn load_partial(self, p: *const f32, n: usize) -> Self::F;
    /// The first `n <= LANES` lanes; touches only those.
    /// # Safety
    /// `p` is writable for `n` elements.
    unsafe fn store_partial(self, p: *mut f32, v: Self::F, n: usize);
    /// IEEE half precision, exact.
    /// # Safety
    /// As for `load`.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Rounds to nearest, ties to even.
    /// # Safety
    /// As for `store`.
    unsafe fn store_f16(self, p: *mut u16, v: Self::F);
    /// bfloat16, exact.
    /// # Safety
    /// As for `load`.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F;
    /// Rounds to nearest, ties to even; NaN stays NaN.
    /// # Safety
    /// As for `store`.
    unsafe fn store_bf16(self, p: *mut u16, v: Self::F);
    /// # Safety
    /// As for `load`.
    unsafe fn load_i8(self, p: *const i8) -> Self::I;
    /// # Safety
    /// As for `load`.
    unsafe fn load_u8(self, p: *const u8) -> Self::I;
    /// The lowest byte of each lane.
    /// # Safety
    /// As for `store`.
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: Self::I) {
        let mut lanes = [0i32; WIDEST];
        // SAFETY: LANES is at most WIDEST; the caller answers for `p`.
        unsafe {
            self.store(lanes.as_mut_ptr().cast(), self.of_bits(v));
            (0..Self::LANES).for_each(|i| *p.add(i) = lanes[i] as i8);
        }
    }
    /// Runs of RUN bytes, `step` bytes apart, as many as fill a vector (part of one where it is longer).
    /// # Safety
    /// `p` is readable for the runs.
    #[inline(always)]
    unsafe fn load_runs<const RUN: usize>(self, p: *const u8, step: usize) -> Self::I {
        let mut bytes = [0u32; WIDEST];
        let to = bytes.as_mut_ptr().cast::<u8>();
        // SAFETY: the buffer holds the widest vector; the caller answers for `p`.
        unsafe {
            for at in (0..4 * Self::LANES).step_by(RUN) {
                let from = p.add(at / RUN * step);
                to.add(at).copy_from_nonoverlapping(from, RUN.min(4 * Self::LANES));
            }
            self.bits(self.load(bytes.as_ptr().cast()))
        }
    }
    /// `p[index]` for each lane.
    /// # Safety
    /// `p` is readable at each of the indices.
    unsafe fn gather(self, p: *const f32, index: Self::I) -> Self::F;

    /// `p[index]` for each lane.
    /// # Safety
    /// `p` is readable at each of the indices.
    #[inline(always)]
    unsafe fn gather_fours(self, p: *const u32, index: Self::I) -> Self::I {
        let (mut lanes, mut all) = ([0u32; WIDEST], [0u32; WIDEST]);
        // SAFETY: the buffers hold the widest vector; the caller answers for the indices.
        unsafe {
            self.store(lanes.as_mut_ptr().cast(), self.of_bits(index));
            let mut i = 0;
            while i < Self::LANES {
                all[i] = (*p.add(lanes[i] as usize)).to_le();
                i += 1;
            }
            self.bits(self.load(all.as_ptr().cast()))
        }
    }
    /// `p[index]` for each lane: the first half of the lanes, then the second.
    /// # Safety
    /// `p` is readable at each of the indices.
    #[inline(always)]
    unsafe fn gather_eights(self, p: *const u64, index: Self::I) -> [Self::I; 2] {
        let (mut lanes, mut all) = ([0u32; WIDEST], [0u64; WIDEST]);
        // SAFETY: the buffers hold the widest vector and twice that; the caller answers for the indices.
        unsafe {
            self.store(lanes.as_mut_ptr().cast(), self.of_bits(index));
            let mut i = 0;
            while i < Self::LANES {
                all[i] = (*p.add(lanes[i] as usize)).to_le();
                i += 1;
            }
            let all = all.as_ptr().cast::<f32>();
            [self.bits(self.load(all)), self.bits(self.load(all.add(Self::LANES)))]
        }
    }
    /// 255 in each byte whose bit is set, 0 in the others.
    #[inline(always)]
    fn bytes_of_bits(self, bits: u64) -> Self::I {
        let mut bytes = [0u8; 4 * WIDEST];
        bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = ((bits >> i & 1) as u8).wrapping_neg());
        // SAFETY: the buffer holds the widest vector.
        self.bits(unsafe { self.load(bytes.as_ptr().cast()) })
    }

    /// Asks for a line of memory that is needed soon; any address will do.
    #[inline(always)]
    fn prefetch(self, _p: *const u8) {}
    /// As `prefetch`, of what is needed later: into the second cache.
    #[inline(always)]
    fn prefetch_far(self, _p: *const u8) {}

    /// One half-precision number.
    fn f16_to_f32(self, bits: u16) -> f32;
    /// `to[j][i] = from[i][j]` of a square of LANES by LANES, rows the given number of elements apart.
    /// # Safety
    /// Both squares are there, and apart.
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) {
        for j in 0..Self::LANES {
            for i in 0..Self::LANES {
                // SAFETY: the caller's promise.
                unsafe { *to.add(j * to_pitch + i) = *from.add(i * from_pitch + j) };
            }
        }
    }

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b` for b from 1 to 2^60, within 1 ulp: may be faster than `div`.
    #[inline(always)]
    fn ratio(self, a: Self::F, b: Self::F) -> Self::F {
        self.div(a, b)
    }
    /// `a * b + c`; rounded once where the processor can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;

    /// To the nearest integer, ties to even; any value where that is no i32.
    fn to_i(self, a: Self::F) -> Self::I;
    fn float(self, a: Self::I) -> Self::F;
    fn bits(self, a: Self::F) -> Self::I;
    fn of_bits(self, a: Self::I) -> Self::F;
    /// Wraps.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Wraps.
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Wraps.
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Adds to each lane of `c` the products of its four unsigned bytes of `u` with the signed ones of `i`.
    #[inline(always)]
    fn dot(self, c: Self::I, u: Self::I, i: Self::I) -> Self::I {
        let byte = self.splat_i(255);
        let p0 = self.mul_i(self.and(u, byte), self.sar::<24>(self.shl::<24>(i)));
        let p1 = self.mul_i(self.and(self.shr::<8>(u), byte), self.sar::<24>(self.shl::<16>(i)));
        let p2 = self.mul_i(self.and(self.shr::<16>(u), byte), self.sar::<24>(self.shl::<8>(i)));
        let p3 = self.mul_i(self.shr::<24>(u), self.sar::<24>(i));
        self.add_i(c, self.add_i(self.add_i(p0, p1), self.add_i(p2, p3)))
    }
    /// Adds to M by V vectors of i32 sums the dot products of M times four unsigned bytes of `a` with V vectors of signed ones of `b`: `a` has the
    /// even bytes as 16 bits, half a run of [`HALVES_RUN`] bytes later the odd ones, and each of the M a run after the one before; two vectors of
    /// `b` lie together, the next two `next` bytes later.
    ///
    /// # Safety
    /// `a` holds M runs, `b` V vectors, in pairs `next` bytes apart.
    #[inline(always)]
    unsafe fn add_halves<const M: usize, const V: usize>(
        self,
        acc: &mut [[Self::F; V]; M],
        a: *const f32,
        b: *const u8,
        next: usize,
    ) {
        for (i, sums) in acc.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let (even, odd, w) = unsafe {
                    let a = a.add(i * HALVES_RUN / 4);
                    let b = b.add(v / 2 * next).cast::<f32>().add(v % 2 * Self::LANES);
                    (*a, *a.add(HALVES_RUN / 8), self.load(b))
                };
                let u = self.splat_i((even.to_bits() | odd.to_bits() << 8) as i32);
                *sum = self.of_bits(self.dot(self.bits(*sum), u, self.bits(w)));
            }
        }
    }
    /// Adds to M by V vectors of sums a run of 16 elements of k: a factor for each lane times the dot product of its 16 unsigned bytes, four of each
    /// [`RUN_PITCH`] bytes, with 16 signed ones of each of M rows of x. STEPS times the largest products of a pair of bytes fit 16 bits, as factors do.
    ///
    /// # Safety
    /// `a` holds 16 bytes of each row, `pitch` apart; `b` four times V vectors; `factors` V vectors of twice 16 bits.
    #[inline(always)]
    unsafe fn add_run<const M: usize, const V: usize, const STEPS: usize>(
        self,
        acc: &mut [[Self::I; V]; M],
        (a, pitch): (*const u8, usize),
        b: *const u8,
        factors: *const i32,
    ) {
        for (i, sums) in acc.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                let mut dot = self.splat_i(0);
                // SAFETY: the caller's promise.
                unsafe {
                    for q in 0..4 {
                        let u = self.bits(self.load(b.add(q * RUN_PITCH).cast::<f32>().add(v * Self::LANES)));
                        let x = a.add(i * pitch).cast::<i32>().add(q).read_unaligned();
                        dot = self.dot(dot, u, self.splat_i(x));
                    }
                    let factor = self.bits(self.load(factors.cast::<f32>().add(v * Self::LANES)));
                    *sum = self.add_i(*sum, self.mul_i(dot, self.sar::<16>(factor)));
                }
            }
        }
    }
    /// As `dot`, where no byte of `u` is above 127, and none of `i` is -128.
    #[inline(always)]
    fn dot_small(self, c: Self::I, u: Self::I, i: Self::I) -> Self::I {
        self.dot(c, u, i)
    }
    /// The sum of `dot_small` of each of four pairs of vectors; `steps` times the largest products of a pair of bytes fit 16 bits.
    #[inline(always)]
    fn dot_fours(self, u: [Self::I; 4], i: [Self::I; 4], _steps: usize) -> Self::I {
        let low = self.dot_small(self.dot_small(self.splat_i(0), u[0], i[0]), u[1], i[1]);
        self.dot_small(self.dot_small(low, u[2], i[2]), u[3], i[3])
    }
    /// Of each four lanes of four vectors, 4 by 4, rows become columns.
    #[inline(always)]
    fn turn_fours(self, v: [Self::I; 4]) -> [Self::I; 4] {
        let (mut from, mut to) = ([[0f32; WIDEST]; 4], [[0f32; WIDEST]; 4]);
        // SAFETY: the buffers hold the widest vector.
        unsafe {
            (0..4).for_each(|i| self.store(from[i].as_mut_ptr(), self.of_bits(v[i])));
            for (i, j) in (0..4).flat_map(|i| (0..WIDEST).map(move |j| (i, j))) {
                to[j % 4][j / 4 * 4 + i] = from[i][j];
            }
            to.map(|to| self.bits(self.load(to.as_ptr())))
        }
    }
    /// As `dot`, where both are signed, and no byte of `b` is -128.
    #[inline(always)]
    fn dot_signed(self, c: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let zero = self.splat_i(0);
        self.sub_i(self.dot(c, self.shift_bytes(a), b), self.dot(zero, self.shift_bytes(zero), b))
    }
    /// Adds to each lane of `c` the products of its two bf16 of `a` with those of `b`; subnormal numbers may count as zeros.
    #[inline(always)]
    fn dot_bf16(self, c: Self::F, a: Self::I, b: Self::I) -> Self::F {
        dot_bf16(self, c, a, b)
    }
    /// Unsigned bytes less 128, signed; or signed ones and 128, unsigned.
    #[inline(always)]
    fn shift_bytes(self, a: Self::I) -> Self::I {
        self.xor(a, self.splat_i(0x8080_8080u32 as i32))
    }
    /// `n * a + b` of 16-bit lanes; wraps.
    #[inline(always)]
    fn multiply_add_16(self, n: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let low = self.splat_i(0xffff);
        let even = self.and(self.add_i(self.mul_i(n, a), b), low);
        let odd = self.add_i(self.mul_i(self.shr::<16>(n), self.shr::<16>(a)), self.shr::<16>(b));
        self.or(even, self.shl::<16>(odd))
    }
    /// The smaller of unsigned bytes.
    #[inline(always)]
    fn min_u8(self, a: Self::I, b: Self::I) -> Self::I {
        self.each_byte(a, b, u8::min)
    }
    /// The larger of unsigned bytes.
    #[inline(always)]
    fn max_u8(self, a: Self::I, b: Self::I) -> Self::I {
        self.each_byte(a, b, u8::max)
    }
    /// `f` of each pair of bytes.
    #[inline(always)]
    fn each_byte(self, a: Self::I, b: Self::I, f: fn(u8, u8) -> u8) -> Self::I {
        let (mut x, mut y) = ([0u8; 4 * WIDEST], [0u8; 4 * WIDEST]);
        // SAFETY: the buffers hold the widest vector.
        unsafe {
            self.store(x.as_mut_ptr().cast(), self.of_bits(a));
            self.store(y.as_mut_ptr().cast(), self.of_bits(b));
            x.iter_mut().zip(y).for_each(|(x, y)| *x = f(*x, y));
            self.bits(self.load(x.as_ptr().cast()))
        }
    }
    /// For each byte of `index`, all below 16, that byte of the table.
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], index: Self::I) -> Self::I {
        let mut bytes = [0u8; 4 * WIDEST];
        // SAFETY: the buffer holds the widest vector.
        unsafe {
            self.store(bytes.as_mut_ptr().cast(), self.of_bits(index));
            bytes.iter_mut().for_each(|b| *b = table[(*b & 15) as usize] as u8);
            self.bits(self.load(bytes.as_ptr().cast()))
        }
    }
    /// The lanes of four vectors, all from -128 to 127, as bytes, in order.
    #[inline(always)]
    fn narrow(self, from: [Self::I; 4]) -> Self::I {
        let mut bytes = [0i8; 4 * WIDEST];
        // SAFETY: the buffer holds four times the lanes of the widest vector.
        unsafe {
            for (i, v) in from.into_iter().enumerate() {
                let mut lanes = [0i32; WIDEST];
                self.store(lanes.as_mut_ptr().cast(), self.of_bits(v));
                (0..Self::LANES).for_each(|j| bytes[i * Self::LANES + j] = lanes[j] as i8);
            }
            self.bits(self.load(bytes.as_ptr().cast()))
        }
    }
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    fn shl<const N: u32>(self, a: Self::I) -> Self::I;
    /// Fills with zeros.
    fn shr<const N: u32>(self, a: Self::I) -> Self::I;
    /// Fills with the sign.
    fn sar<const N: u32>(self, a: Self::I) -> Self::I;

    /// `a < b`; no where either is NaN.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a == b`; no where either is NaN.
    fn eq(self, a: Self::F, b: Self::F) -> Self::M;
    /// Lane `index[i]` of `a` for lane i; best where the indices are constants.
    #[inline(always)]
    fn permute(self, a: Self::F, index: &[i32; WIDEST]) -> Self::F {
        let mut lanes = [0f32; WIDEST];
        // SAFETY: the buffers hold the widest vector, and an index is at most its last lane.
        unsafe {
            self.store(lanes.as_mut_ptr(), a);
            let index = self.bits(self.load(index.as_ptr().cast()));
            self.gather(lanes.as_ptr(), self.and(index, self.splat_i(Self::LANES as i32 - 1)))
        }
    }
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F;

    /// All lanes, added in a fixed order (halves onto halves).
    fn sum(self, a: Self::F) -> f32;
    /// `to[i]` = all lanes of `from[i]`, added in a fixed order, for LANES vectors.
    /// # Safety
    /// `from` is readable for LANES vectors, `to` writable for as many numbers.
    #[inline(always)]
    unsafe fn sums(self, from: *const Self::F, to: *mut f32) {
        for i in 0..Self::LANES {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i) = self.sum(*from.add(i)) };
        }
    }
    /// The largest lane; any value where one is NaN.
    fn max_lane(self, a: Self::F) -> f32;

    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        self.of_bits(self.and(self.bits(a), self.splat_i(0x7fff_ffff)))
    }
    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        self.of_bits(self.xor(self.bits(a), self.splat_i(i32::MIN)))
    }
    /// `a` with the sign of `b`.
    #[inline(always)]
    fn copysign(self, a: Self::F, b: Self::F) -> Self::F {
        let sign = self.and(self.bits(b), self.splat_i(i32::MIN));
        self.of_bits(self.or(self.bits(self.abs(a)), sign))
    }
}

/// [`Simd::dot_bf16`] in f32.
#[inline(always)]
fn dot_bf16<S: Simd>(s: S, c: S::F, a: S::I, b: S::I) -> S::F {
    let low = s.fma(s.of_bits(s.shl::<16>(a)), s.of_bits(s.shl::<16>(b)), c);
    let high = s.splat_i(0xffff_0000u32 as i32);
    s.fma(s.of_bits(s.and(a, high)), s.of_bits(s.and(b, high)), low)
}

/// `simd!(isa, s => expression)`: the expression compiled for the instruction set, with `s` its [`Simd`] value.
macro_rules! simd {
    ($isa:expr, $s:ident => $body:expr) => {
        match $isa {
            $crate::cpu::simd::Isa::Scalar($s) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::Avx2($s) | $crate::cpu::simd::Isa::AvxVnni($s, _) => $s.enter(
                #[inline(always)]
                || $body,
            ),
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::Avx512($s) | $crate::cpu::simd::Isa::Avx512Bf16($s, _) => $s.enter(
                #[inline(always)]
                || $body,
            ),
            #[cfg(target_arch = "aarch64")]
            $crate::cpu::simd::Isa::Neon($s)
            | $crate::cpu::simd::Isa::NeonDotprod($s, _)
            | $crate::cpu::simd::Isa::NeonI8mm($s, _) => $s.enter(
                #[inline(always)]
                || $body,
            ),
        }
    };
}
pub(crate) use simd;

/// As [`simd!`], for algorithms that multiply bytes: also for the sets that have nothing else of their own.
macro_rules! dots {
    ($isa:expr, $s:ident => $body:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::AvxVnni(_, $s) => $s.enter(
                #[inline(always)]
                || $body,
            ),
            #[cfg(target_arch = "aarch64")]
            $crate::cpu::simd::Isa::NeonDotprod(_, $s) => $s.enter(
                #[inline(always)]
                || $body,
            ),
            #[cfg(target_arch = "aarch64")]
            $crate::cpu::simd::Isa::NeonI8mm(_, $s) => $s.enter(
                #[inline(always)]
                || $body,
            ),
            isa => $crate::cpu::simd::simd!(isa, $s => $body),
        }
    };
}
pub(crate) use dots;

/// As [`simd!`], for algorithms that multiply bf16.
macro_rules! pairs {
    ($isa:expr, $s:ident => $body:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::Avx512Bf16(_, $s) => $s.enter(
                #[inline(always)]
                || $body,
            ),
            isa => $crate::cpu::simd::simd!(isa, $s => $body),
        }
    };
}
pub(crate) use pairs;

#[cfg(test)]
mod tests;
