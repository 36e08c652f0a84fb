//! Vectors of 64 bytes from several shorter ones, for algorithms whose data is laid out in such vectors whatever the processor.

use super::{Simd, WIDEST};

/// N vectors of a set, in order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wide<S, const N: usize>(pub(super) S);

/// An array of N from an expression of the index. (A closure would be a function of its own.)
macro_rules! each {
    ($zero:expr, $i:ident => $e:expr) => {{
        let (mut all, mut $i) = ([$zero; N], 0);
        while $i < N {
            all[$i] = $e;
            $i += 1;
        }
        all
    }};
}

/// Methods that do the same to each part.
macro_rules! parts {
    ($($name:ident($($a:ident: $t:ident),*) -> $r:ident;)*) => {
        $(#[inline(always)]
        fn $name(self, $($a: Self::$t),*) -> Self::$r {
            each!(self.0.$name($($a[0]),*), i => self.0.$name($($a[i]),*))
        })*
    };
}

/// Loads of LANES elements.
macro_rules! loads {
    ($($name:ident($t:ty) -> $r:ident;)*) => {
        $(#[inline(always)]
        unsafe fn $name(self, p: *const $t) -> Self::$r {
            // SAFETY: the caller's promise for all parts is one for each.
            unsafe { each!(self.0.$name(p), i => self.0.$name(p.add(i * S::LANES))) }
        })*
    };
}

/// Stores of LANES elements.
macro_rules! stores {
    ($($name:ident($t:ty, $v:ident);)*) => {
        $(#[inline(always)]
        unsafe fn $name(self, p: *mut $t, v: Self::$v) {
            let mut i = 0;
            while i < N {
                // SAFETY: the caller's promise for all parts is one for each.
                unsafe { self.0.$name(p.add(i * S::LANES), v[i]) };
                i += 1;
            }
        })*
    };
}

impl<S: Simd, const N: usize> Simd for Wide<S, N> {
    const LANES: usize = N * S::LANES;
    const REGISTERS: usize = S::REGISTERS;
    const PARTS: usize = N;
    const DOTS: bool = S::DOTS;
    const SIGNED: bool = S::SIGNED;
    const RUNS: bool = S::RUNS;
    type F = [S::F; N];
    type I = [S::I; N];
    type M = [S::M; N];
    type Wide = Self;
    type Plain = Wide<S::Plain, N>;

    #[inline(always)]
    fn plain(self) -> Self::Plain {
        Wide(self.0.plain())
    }
    #[inline(always)]
    fn wide(self) -> Self {
        self
    }
    #[inline(always)]
    fn outline<R>(self, f: impl FnOnce() -> R) -> R {
        self.0.outline(f)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [self.0.splat(x); N]
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        [self.0.splat_i(x); N]
    }
    #[inline(always)]
    fn f16_to_f32(self, bits: u16) -> f32 {
        self.0.f16_to_f32(bits)
    }

    loads! {
        load(f32) -> F;
        load_f16(u16) -> F;
        load_bf16(u16) -> F;
        load_i8(i8) -> I;
        load_u8(u8) -> I;
    }
    stores! {
        store(f32, F);
        store_f16(u16, F);
        store_bf16(u16, F);
        store_i8(i8, I);
    }

    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> Self::F {
        // SAFETY: a part has what is left of the n elements.
        unsafe { each!(self.0.zero(), i => self.0.load_partial(p.wrapping_add(i * S::LANES), left::<S>(n, i))) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, v: Self::F, n: usize) {
        let mut i = 0;
        while i < N {
            // SAFETY: as above.
            unsafe { self.0.store_partial(p.wrapping_add(i * S::LANES), v[i], left::<S>(n, i)) };
            i += 1;
        }
    }
    #[inline(always)]
    unsafe fn load_runs<const RUN: usize>(self, p: *const u8, step: usize) -> Self::I {
        let part = 4 * S::LANES;
        // SAFETY: the parts of a run, or the runs of a part, are the caller's.
        unsafe {
            each!(self.0.splat_i(0), i => {
                let from = p.add(i * part / RUN * step + i * part % RUN);
                if RUN < part { self.0.load_runs::<RUN>(from, step) } else { self.0.bits(self.0.load(from.cast())) }
            })
        }
    }
    #[inline(always)]
    unsafe fn gather(self, p: *const f32, index: Self::I) -> Self::F {
        // SAFETY: the caller's promise.
        unsafe { each!(self.0.zero(), i => self.0.gather(p, index[i])) }
    }
    #[inline(always)]
    unsafe fn gather_fours(self, p: *const u32, index: Self::I) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe { each!(self.0.splat_i(0), i => self.0.gather_fours(p, index[i])) }
    }
    #[inline(always)]
    unsafe fn gather_eights(self, p: *const u64, index: Self::I) -> [Self::I; 2] {
        let (mut all, mut i) = ([self.splat_i(0); 2], 0);
        while i < N {
            // SAFETY: the caller's promise.
            let [a, b] = unsafe { self.0.gather_eights(p, index[i]) };
            (all[2 * i / N][2 * i % N], all[(2 * i + 1) / N][(2 * i + 1) % N]) = (a, b);
            i += 1;
        }
        all
    }
    #[inline(always)]
    fn bytes_of_bits(self, bits: u64) -> Self::I {
        each!(self.0.splat_i(0), i => self.0.bytes_of_bits(bits >> (i * 4 * S::LANES)))
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        self.0.prefetch(p)
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        self.0.prefetch_far(p)
    }
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) {
        let mut at = 0;
        while at < N * N {
            let (i, j) = (at / N * S::LANES, at % N * S::LANES);
            // SAFETY: a part of the squares, which are the caller's.
            unsafe { self.0.transpose(from.add(i * from_pitch + j), from_pitch, to.add(j * to_pitch + i), to_pitch) };
            at += 1;
        }
    }

    parts! {
        add(a: F, b: F) -> F;
        sub(a: F, b: F) -> F;
        mul(a: F, b: F) -> F;
        div(a: F, b: F) -> F;
        fma(a: F, b: F, c: F) -> F;
        min(a: F, b: F) -> F;
        max(a: F, b: F) -> F;
        round(a: F) -> F;
        to_i(a: F) -> I;
        float(a: I) -> F;
        bits(a: F) -> I;
        of_bits(a: I) -> F;
        add_i(a: I, b: I) -> I;
        sub_i(a: I, b: I) -> I;
        mul_i(a: I, b: I) -> I;
        dot(c: I, u: I, i: I) -> I;
        dot_small(c: I, u: I, i: I) -> I;
        dot_signed(c: I, a: I, b: I) -> I;
        multiply_add_16(n: I, a: I, b: I) -> I;
        min_u8(a: I, b: I) -> I;
        max_u8(a: I, b: I) -> I;
        and(a: I, b: I) -> I;
        or(a: I, b: I) -> I;
        xor(a: I, b: I) -> I;
        lt(a: F, b: F) -> M;
        eq(a: F, b: F) -> M;
        select(mask: M, yes: F, no: F) -> F;
    }

    #[inline(always)]
    fn look_up(self, table: &[i8; 16], index: Self::I) -> Self::I {
        each!(self.0.splat_i(0), i => self.0.look_up(table, index[i]))
    }
    #[inline(always)]
    fn dot_fours(self, u: [Self::I; 4], x: [Self::I; 4], steps: usize) -> Self::I {
        each!(self.0.splat_i(0), i => {
            self.0.dot_fours([u[0][i], u[1][i], u[2][i], u[3][i]], [x[0][i], x[1][i], x[2][i], x[3][i]], steps)
        })
    }
    #[inline(always)]
    fn turn_fours(self, v: [Self::I; 4]) -> [Self::I; 4] {
        let (mut all, mut i) = ([self.splat_i(0); 4], 0);
        while i < N {
            let turned = self.0.turn_fours([v[0][i], v[1][i], v[2][i], v[3][i]]);
            (all[0][i], all[1][i], all[2][i], all[3][i]) = (turned[0], turned[1], turned[2], turned[3]);
            i += 1;
        }
        all
    }
    #[inline(always)]
    fn narrow(self, from: [Self::I; 4]) -> Self::I {
        each!(self.0.splat_i(0), i => {
            let at = 4 * i;
            self.0.narrow([
                from[at / N][at % N],
                from[(at + 1) / N][(at + 1) % N],
                from[(at + 2) / N][(at + 2) % N],
                from[(at + 3) / N][(at + 3) % N],
            ])
        })
    }
    #[inline(always)]
    fn shl<const B: u32>(self, a: Self::I) -> Self::I {
        each!(self.0.splat_i(0), i => self.0.shl::<B>(a[i]))
    }
    #[inline(always)]
    fn shr<const B: u32>(self, a: Self::I) -> Self::I {
        each!(self.0.splat_i(0), i => self.0.shr::<B>(a[i]))
    }
    #[inline(always)]
    fn sar<const B: u32>(self, a: Self::I) -> Self::I {
        each!(self.0.splat_i(0), i => self.0.sar::<B>(a[i]))
    }
    /// What comes from one part is taken from there; two parts are chosen from, more looked up in memory.
    #[inline(always)]
    fn permute(self, a: Self::F, index: &[i32; WIDEST]) -> Self::F {
        each!(self.0.zero(), i => {
            let (mut lanes, mut parts, mut l) = ([0; WIDEST], [0; WIDEST], 0);
            let mut one = true;
            while l < S::LANES {
                let from = index[i * S::LANES + l] as usize % Self::LANES;
                (lanes[l], parts[l]) = ((from % S::LANES) as i32, (from / S::LANES) as i32);
                one &= parts[l] == parts[0];
                l += 1;
            }
            if one {
                self.0.permute(a[parts[0] as usize], &lanes)
            } else if N == 2 {
                // SAFETY: as many as the widest vector has.
                let parts = self.0.float(self.0.bits(unsafe { self.0.load(parts.as_ptr().cast()) }));
                let first = self.0.eq(parts, self.0.zero());
                self.0.select(first, self.0.permute(a[0], &lanes), self.0.permute(a[1], &lanes))
            } else {
                // SAFETY: an index is at most the last lane.
                unsafe {
                    let at = self.0.bits(self.0.load(index.as_ptr().add(i * S::LANES).cast()));
                    self.0.gather((&raw const a).cast(), self.0.and(at, self.0.splat_i(Self::LANES as i32 - 1)))
                }
            }
        })
    }
    #[inline(always)]
    fn sum(self, mut a: Self::F) -> f32 {
        let mut n = N;
        while n > 1 {
            n /= 2;
            let mut i = 0;
            while i < n {
                a[i] = self.0.add(a[i], a[i + n]);
                i += 1;
            }
        }
        self.0.sum(a[0])
    }
    #[inline(always)]
    fn max_lane(self, a: Self::F) -> f32 {
        let (mut largest, mut i) = (a[0], 1);
        while i < N {
            largest = self.0.max(largest, a[i]);
            i += 1;
        }
        self.0.max_lane(largest)
    }
}

/// Of the first `n` elements, how many are in part `i`.
#[inline(always)]
fn left<S: Simd>(n: usize, i: usize) -> usize {
    n.saturating_sub(i * S::LANES).min(S::LANES)
}
