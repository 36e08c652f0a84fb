//! The innermost loop: some rows of x times a panel of [`PANEL`] columns of wᵀ, over one block of k.
//!
//! ```text
//! a: [rows][BLOCK] f32        b: [k][PANEL] f32, f16 or bf16        c: [rows][..] f32
//! ```
//!
//! Sums stay in registers over a block: 12 x 32 with 32 vectors of 16 lanes, 6 x 16 with 16 of 8. Every element is the sum
//! over p = 0, 1, 2, .. of one block by fused multiply-adds, plus what came from the blocks before: the same order
//! whatever the number of rows, so that a row's result does not depend on the others.

use crate::cpu::simd::{Element, Simd};

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Elements of k between two visits of `c`; whole blocks of every quantized format. Products of 8-bit integers add up exactly over this many in f32:
/// 256 * 255 * 128 < 2^24.
pub(super) const BLOCK: usize = 256;

/// How the sums of blocks are added up.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sum {
    /// In f32.
    Float,
    /// In i32, wrapping; `c` holds i32. The sums within a block are whole numbers in f32.
    Integer,
}

/// What the loop reads and writes besides the vectors: see the drawing above.
#[derive(Clone, Copy)]
pub(super) struct Tile<T> {
    pub(super) a: *const f32,
    pub(super) b: *const T,
    /// Elements of k, at most BLOCK.
    pub(super) k: usize,
    pub(super) c: *mut f32,
    /// Elements between rows of `c`.
    pub(super) pitch: usize,
    /// The first block: `c` is overwritten.
    pub(super) first: bool,
    pub(super) sum: Sum,
}

/// `rows` rows by a panel.
///
/// # Safety
/// `a` holds `rows` rows of BLOCK elements, `b` k rows of PANEL, `c` `rows` rows of PANEL at the pitch.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd, T: Element>(s: S, rows: usize, t: Tile<T>) {
    let mut i = 0;
    // SAFETY: strips cover the rows in order; the caller's promise holds for each.
    unsafe {
        let strip = |i: usize| Tile { a: t.a.add(i * BLOCK), c: t.c.add(i * t.pitch), ..t };
        macro_rules! strips {
            ($height:literal) => {
                while rows - i >= $height {
                    let strip = strip(i);
                    s.outline(
                        #[inline(always)]
                        || columns::<S, T, $height>(s, strip),
                    );
                    i += $height;
                }
            };
        }
        match S::LANES {
            16 => strips!(12),
            8 => strips!(6),
            _ => {}
        }
        strips!(4);
        strips!(1);
    }
}

/// All columns of the panel, two vectors at a time.
#[inline(always)]
unsafe fn columns<S: Simd, T: Element, const M: usize>(s: S, t: Tile<T>) {
    for j in (0..PANEL).step_by(2 * S::LANES) {
        // SAFETY: 2 LANES divide PANEL.
        unsafe { registers::<S, T, M>(s, Tile { b: t.b.add(j), c: t.c.add(j), ..t }) }
    }
}

#[inline(always)]
unsafe fn registers<S: Simd, T: Element, const M: usize>(s: S, t: Tile<T>) {
    let mut acc = [[s.zero(); 2]; M];
    // SAFETY: p < k, i < M, two vectors of columns.
    unsafe {
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.k {
            let (b0, b1) = (T::load(s, b), T::load(s, b.add(S::LANES)));
            let mut i = 0;
            while i < M {
                let x = s.splat(*a.add(i * BLOCK));
                acc[i] = [s.fma(x, b0, acc[i][0]), s.fma(x, b1, acc[i][1])];
                i += 1;
            }
            (a, b) = (a.add(1), b.add(PANEL));
        }
        let mut i = 0;
        while i < M {
            let mut v = 0;
            while v < 2 {
                let c = t.c.add(i * t.pitch + v * S::LANES);
                let before = s.load(c);
                let sum = match (t.sum, t.first) {
                    (Sum::Float, true) => acc[i][v],
                    (Sum::Float, false) => s.add(before, acc[i][v]),
                    (Sum::Integer, true) => s.of_bits(s.to_i(acc[i][v])),
                    (Sum::Integer, false) => s.of_bits(s.add_i(s.bits(before), s.to_i(acc[i][v]))),
                };
                s.store(c, sum);
                v += 1;
            }
            i += 1;
        }
    }
}
