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

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod dot;
mod element;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod row;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use {
    avx2::Avx2,
    avx512::Avx512,
    dot::{DotBf16, DotInt8},
};

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{DOTPROD, I8MM, Neon, PLAIN};

pub(crate) use element::{Element, element};
pub(crate) use scalar::Scalar;

/// The widest vector in lanes.
const WIDEST: usize = 16;

/// Vectors of f32 with the integers and masks that go with them. Every operation is lane by lane unless it says otherwise.
pub(crate) trait Simd: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// Lanes of a vector.
    const LANES: usize;
    /// True where `dot` is an instruction.
    const DOTS: bool = false;
    /// f32 lanes.
    type F: Copy;
    /// i32 lanes.
    type I: Copy;
    /// A yes or no per lane.
    type M: Copy;

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

    /// The same for the first `rows` rows, which come to lie without gaps: `to[j * rows + i] = from[i][j]`.
    /// # Safety
    /// The square is there, and apart; `to` has room for LANES more elements.
    #[inline(always)]
    unsafe fn transpose_some(self, from: *const f32, from_pitch: usize, to: *mut f32, rows: usize) {
        let mut square = std::mem::MaybeUninit::<[f32; WIDEST * WIDEST]>::uninit();
        let square = square.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's promise; what a vector writes beyond its row is overwritten by the next one.
        unsafe {
            self.transpose(from, from_pitch, square, Self::LANES);
            for j in 0..Self::LANES {
                self.store(to.add(j * rows), self.load(square.add(j * Self::LANES)));
            }
        }
    }

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b` for b from 1 to 2, within 1 ulp: may be faster than `div`.
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
    /// Lane `index` of `a`, for each lane.
    #[inline(always)]
    fn permute(self, a: Self::F, index: Self::I) -> Self::F {
        let mut lanes = [0f32; WIDEST];
        // SAFETY: the buffer holds the widest vector, and an index is at most its last lane.
        unsafe {
            self.store(lanes.as_mut_ptr(), a);
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

/// `simd!(isa, s => expression)`: the expression compiled for the instruction set, with `s` its [`Simd`] value.
macro_rules! simd {
    ($isa:expr, $s:ident => $body:expr) => {
        match $isa {
            $crate::cpu::simd::Isa::Scalar($s) => $body,
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::Avx2($s) => $s.enter(
                #[inline(always)]
                || $body,
            ),
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Isa::Avx512($s) => $s.enter(
                #[inline(always)]
                || $body,
            ),
            #[cfg(target_arch = "aarch64")]
            $crate::cpu::simd::Isa::Neon($s) => $s.enter(
                #[inline(always)]
                || $body,
            ),
            #[cfg(target_arch = "aarch64")]
            $crate::cpu::simd::Isa::NeonDotprod($s) => $s.enter(
                #[inline(always)]
                || $body,
            ),
            #[cfg(target_arch = "aarch64")]
            $crate::cpu::simd::Isa::NeonI8mm($s) => $s.enter(
                #[inline(always)]
                || $body,
            ),
        }
    };
}
pub(crate) use simd;

/// The instruction set in use: what was detected, or less.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Isa {
    /// Whatever the compiler was told to build for.
    Scalar(Scalar),
    /// AVX2, FMA, F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 F, BW, DQ, VL, VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon<PLAIN>),
    /// NEON with `sdot`.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(Neon<DOTPROD>),
    /// NEON with `usdot`.
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(Neon<I8MM>),
}

impl Isa {
    /// Every set this processor has, best first.
    pub(crate) fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx512::detect().map(Isa::Avx512));
            all.extend(Avx2::detect().map(Isa::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.extend(Neon::detect().map(Isa::NeonI8mm));
            all.extend(Neon::detect().map(Isa::NeonDotprod));
            all.extend(Neon::detect().map(Isa::Neon));
        }
        all.push(Isa::Scalar(Scalar));
        all
    }

    /// The best set, or the one that the environment variable `TESELA_ISA` names, where the processor has it.
    pub(crate) fn detect() -> Isa {
        let all = Isa::available();
        let wanted = std::env::var("TESELA_ISA").unwrap_or_default();
        all.iter().find(|i| i.name() == wanted).or(all.first()).copied().unwrap_or(Isa::Scalar(Scalar))
    }

    /// True where 8-bit integers have a dot product of their own, of vectors of 64 bytes: what the kernels of quantized weights are written for.
    pub(crate) fn dots(self) -> bool {
        #[inline(always)]
        fn dots<S: Simd>(_: S) -> bool {
            S::DOTS && S::LANES == 16
        }
        simd!(self, s => dots(s))
    }

    /// `scalar`, `avx2`, `avx512`, `neon`, `neon-dotprod`, `neon-i8mm`: the last part of kernels' names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod(_) => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm(_) => "neon-i8mm",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_transposed() {
        let from: Vec<f32> = (0..400).map(|i| i as f32).collect();
        for isa in Isa::available() {
            let mut to = [0f32; 400];
            // SAFETY: no square is larger than 16 by 16, and both have rows of 20.
            let n = simd!(isa, s => unsafe { turn(s, from.as_ptr(), to.as_mut_ptr()) });
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                assert_eq!(to[j * 20 + i], from[i * 20 + j], "{}", isa.name());
            }
            for rows in 2..=n {
                let mut to = [-1f32; 272];
                // SAFETY: no square is larger than 16 by 16, and there is room for a vector more.
                simd!(isa, s => unsafe { s.transpose_some(from.as_ptr(), 20, to.as_mut_ptr(), rows) });
                for (i, j) in (0..rows).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    assert_eq!(to[j * rows + i], from[i * 20 + j], "{} {rows}", isa.name());
                }
            }
        }
    }

    #[test]
    fn bytes_are_multiplied_by_fours() {
        let u: Vec<u8> = (0..64).map(|i| i * 77 % 256).map(|i: u32| i as u8).collect();
        let i: Vec<i8> = (0..64u32).map(|i| (i * 59 + 13) as i8).collect();
        for (isa, extreme) in Isa::available().into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
            let (u, i) = if extreme { (vec![255; 64], vec![-128; 64]) } else { (u.clone(), i.clone()) };
            let mut sums = [7i32; 16];
            // SAFETY: no vector is longer than 64 bytes.
            let lanes = simd!(isa, s => unsafe { add_dots(s, u.as_ptr(), i.as_ptr(), &mut sums) });
            for (lane, &sum) in sums.iter().enumerate().take(lanes) {
                let want: i32 = (4 * lane..4 * lane + 4).map(|p| u[p] as i32 * i[p] as i32).sum();
                assert_eq!(sum, 7 + want, "{}", isa.name());
            }
            let mut low = [0i8; 16];
            // SAFETY: both hold the widest vector.
            simd!(isa, s => unsafe { s.store_i8(low.as_mut_ptr(), s.bits(s.load(sums.as_ptr().cast()))) });
            assert!((0..lanes).all(|lane| low[lane] == sums[lane] as i8), "{}", isa.name());
        }
    }

    #[inline(always)]
    unsafe fn add_dots<S: Simd>(s: S, u: *const u8, i: *const i8, sums: &mut [i32; 16]) -> usize {
        let sums = sums.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's promise.
        unsafe {
            let (c, u, i) = (s.bits(s.load(sums)), s.bits(s.load(u.cast())), s.bits(s.load(i.cast())));
            s.store(sums, s.of_bits(s.dot(c, u, i)));
        }
        S::LANES
    }

    #[test]
    fn bytes_are_looked_up_and_narrowed() {
        let table: [i8; 16] = std::array::from_fn(|i| (i * 37) as i8);
        let bytes: [u8; 64] = std::array::from_fn(|i| (i * 7 % 16) as u8);
        let numbers: [i32; 64] = std::array::from_fn(|i| i as i32 * 4 - 128);
        for isa in Isa::available() {
            let (mut found, mut narrow) = ([0i8; 64], [0i8; 64]);
            // SAFETY: no vector is longer than 64 bytes, or has more than 16 lanes.
            let lanes = simd!(isa, s => unsafe { shorten(s, &table, &bytes, &numbers, &mut found, &mut narrow) });
            for i in 0..4 * lanes {
                assert_eq!(found[i], table[bytes[i] as usize], "{}", isa.name());
                assert_eq!(narrow[i], numbers[i] as i8, "{}", isa.name());
            }
        }
    }

    #[inline(always)]
    unsafe fn shorten<S: Simd>(
        s: S,
        table: &[i8; 16],
        bytes: &[u8; 64],
        numbers: &[i32; 64],
        found: &mut [i8; 64],
        narrow: &mut [i8; 64],
    ) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            let v = s.look_up(table, s.bits(s.load(bytes.as_ptr().cast())));
            s.store(found.as_mut_ptr().cast(), s.of_bits(v));
            let mut v = [s.splat_i(0); 4];
            for (i, v) in v.iter_mut().enumerate() {
                *v = s.bits(s.load(numbers.as_ptr().add(i * S::LANES).cast()));
            }
            s.store(narrow.as_mut_ptr().cast(), s.of_bits(s.narrow(v)));
        }
        S::LANES
    }

    #[test]
    fn bytes_and_halves_of_words() {
        let a: [u32; 16] = std::array::from_fn(|i| (i as u32 + 1).wrapping_mul(0x9e37_79b9));
        let b: [u32; 16] = std::array::from_fn(|i| (i as u32 + 5).wrapping_mul(0x85eb_ca6b));
        for isa in Isa::available() {
            let mut to = [[0u32; 16]; 3];
            // SAFETY: no vector has more than 16 lanes.
            let lanes = simd!(isa, s => unsafe { combine(s, &a, &b, &mut to) });
            for i in 0..lanes {
                let bytes = |f: fn(u8, u8) -> u8| {
                    let (a, b) = (a[i].to_le_bytes(), b[i].to_le_bytes());
                    u32::from_le_bytes(std::array::from_fn(|j| f(a[j], b[j])))
                };
                assert_eq!((to[0][i], to[1][i]), (bytes(u8::min), bytes(u8::max)), "{}", isa.name());
                let half = |v: u32| [v as u16, (v >> 16) as u16];
                let (a, b) = (half(a[i]), half(b[i]));
                let want: [u16; 2] = std::array::from_fn(|j| a[j].wrapping_mul(b[j]).wrapping_add(a[j]));
                assert_eq!(half(to[2][i]), want, "{}", isa.name());
            }
        }
    }

    #[inline(always)]
    unsafe fn combine<S: Simd>(s: S, a: &[u32; 16], b: &[u32; 16], to: &mut [[u32; 16]; 3]) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (s.bits(s.load(a.as_ptr().cast())), s.bits(s.load(b.as_ptr().cast())));
            for (to, v) in to.iter_mut().zip([s.min_u8(a, b), s.max_u8(a, b), s.multiply_add_16(a, b, a)]) {
                s.store(to.as_mut_ptr().cast(), s.of_bits(v));
            }
        }
        S::LANES
    }

    #[test]
    fn sums_of_many_vectors() {
        for isa in Isa::available() {
            let mut to = [0f32; 16];
            // SAFETY: no vector has more than 16 lanes.
            let (n, want) = simd!(isa, s => unsafe { add_up(s, to.as_mut_ptr()) });
            for (i, sum) in to.iter().take(n).enumerate() {
                assert_eq!(*sum, want + (n * i * i) as f32, "{}", isa.name());
            }
        }
    }

    /// Sums vectors of the lanes' numbers plus the square of their own.
    #[inline(always)]
    unsafe fn add_up<S: Simd>(s: S, to: *mut f32) -> (usize, f32) {
        let lanes: [f32; 16] = std::array::from_fn(|i| i as f32);
        let mut from = [s.zero(); 16];
        // SAFETY: the caller's promise.
        unsafe {
            for (i, from) in from.iter_mut().enumerate() {
                *from = s.add(s.load(lanes.as_ptr()), s.splat((i * i) as f32));
            }
            s.sums(from.as_ptr(), to);
        }
        (S::LANES, (S::LANES * (S::LANES - 1) / 2) as f32)
    }

    #[inline(always)]
    unsafe fn turn<S: Simd>(s: S, from: *const f32, to: *mut f32) -> usize {
        // SAFETY: the caller's promise.
        unsafe { s.transpose(from, 20, to, 20) };
        S::LANES
    }
}
