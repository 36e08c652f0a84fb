//! The innermost loop: some rows of x times a panel of [`PANEL`] columns of wᵀ, over one block of k.
//!
//! ```text
//! a: strips of [k][height] f32        b: [k][PANEL] f32, f16 or bf16        c: [rows][..] f32
//! ```
//!
//! Sums stay in registers over a block: 14 x 32 with 32 vectors of 16 lanes, 6 x 16 with 16 of 8. Every element is the sum
//! over p = 0, 1, 2, .. of one block by fused multiply-adds, plus what came from the blocks before: the same order
//! whatever the number of rows, so that a row's result does not depend on the others.
//!
//! The rows of a call are cut into strips of one height ([`height`]), at most one row of padding in each: time does not fall where
//! a row is added. Strips of 12, 4 and 1, as they were before, took for 3, 7, 11 and 15 rows 2.1, 1.6, 1.6 and 1.2 times as
//! long (AVX-512, the loop alone, panels in the second cache, in turns); from 24 rows on both are equal within a tenth.
//! The loop is 2 loads, 14 broadcasts and 28 multiply-adds, nothing spilled; on a quiet core, with four panels and 16 strips in the
//! second cache, it reached 169 of 174 GFLOP/s. Tried and lost: fetching `c` ahead, 3 to 10 % slower at 1024 cubed on a busy
//! machine; the dot product of bf16 pairs, which this processor (Xeon, model 207) starts every second cycle: 86 GFLOP/s, half of f32.

use std::mem::MaybeUninit;

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

/// Rows of x that a strip has at most.
pub(super) const TALLEST: usize = 14;

/// The height of the strips that so many rows are cut into, all of one height: as few strips as the registers allow, then as
/// low as they can be. (Were the last one shorter, few rows over a whole strip would cost as much as many.)
#[inline(always)]
pub(super) fn height<S: Simd>(_s: S, rows: usize) -> usize {
    let most = match S::LANES {
        16 => TALLEST,
        8 => 6,
        _ => 4,
    };
    let height = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
    if height > 6 { height.next_multiple_of(2) } else { height }
}

/// Elements of scratch memory between strips of this height: the last numbers are written as whole vectors.
pub(super) fn strip_pitch(height: usize) -> usize {
    height * BLOCK + 16
}

/// Lays out elements of up to LANES rows as the loop reads them: `to[p * height + i] = from[i * BLOCK + p]`.
///
/// # Safety
/// `from` holds LANES rows of BLOCK elements, `to` a strip; `height` is at most LANES.
#[inline(always)]
pub(super) unsafe fn interleave<S: Simd>(s: S, from: *const f32, height: usize, to: *mut f32) {
    let mut square = MaybeUninit::<[f32; 256]>::uninit();
    let square = square.as_mut_ptr().cast::<f32>();
    for p in (0..BLOCK).step_by(S::LANES) {
        // SAFETY: LANES divides BLOCK and is at most 16; what a vector writes beyond its row is overwritten by the next one, and
        // behind the last there is room.
        unsafe {
            s.transpose(from.add(p), BLOCK, square, S::LANES);
            for q in 0..S::LANES {
                s.store(to.add((p + q) * height), s.load(square.add(q * S::LANES)));
            }
        }
    }
}

/// Strips of the given height by a panel.
///
/// # Safety
/// `a` holds the strips, `b` k rows of PANEL, `c` as many rows of PANEL at the pitch.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd, T: Element>(s: S, strips: usize, height: usize, t: Tile<T>) {
    macro_rules! heights {
        ($($height:literal)*) => {
            match height {
                $($height => s.outline(
                    #[inline(always)]
                    || {
                        for i in 0..strips {
                            // SAFETY: the caller's promise holds for each strip.
                            unsafe {
                                let a = t.a.add(i * strip_pitch($height));
                                columns::<S, T, $height>(s, Tile { a, c: t.c.add(i * $height * t.pitch), ..t });
                            }
                        }
                    },
                ),)*
                _ => unreachable!("no strip has {height} rows"),
            }
        };
    }
    match S::LANES {
        16 => heights!(1 2 3 4 5 6 8 10 12 14),
        8 => heights!(1 2 3 4 5 6),
        _ => heights!(1 2 3 4),
    }
}

/// All columns of the panel, two vectors at a time.
#[inline(always)]
unsafe fn columns<S: Simd, T: Element, const M: usize>(s: S, t: Tile<T>) {
    let mut j = 0;
    while j < PANEL {
        // SAFETY: 2 LANES divide PANEL.
        unsafe { registers::<S, T, M>(s, Tile { b: t.b.add(j), c: t.c.add(j), ..t }) }
        j += 2 * S::LANES;
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
                let x = s.splat(*a.add(i));
                acc[i] = [s.fma(x, b0, acc[i][0]), s.fma(x, b1, acc[i][1])];
                i += 1;
            }
            (a, b) = (a.add(M), b.add(PANEL));
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
