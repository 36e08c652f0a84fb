//! The innermost loop: some rows of x times a panel of [`PANEL`] columns of wᵀ, over one block of k.
//!
//! ```text
//! a: strips of [k][height] f32        b: [k][PANEL] f32, f16 or bf16        c: [rows][..] f32
//!    or [k / 4][height] of 4 bytes       or [k / 4][PANEL] of 4 bytes           or i32
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

use crate::cpu::simd::{Element, Simd};

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Steps between two visits of `c`: elements of k (whole blocks of every quantized format), or quads of bytes.
pub(super) const BLOCK: usize = 256;

/// What a panel holds, and what one step of the loop does with it. Numbers of x lie in the strips as f32, or as four bytes in its place.
pub(super) trait Term: Copy + 'static {
    /// True where sums are i32 in the place of f32.
    const INTEGER: bool;

    /// # Safety
    /// `p` is readable for LANES terms.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::F;
    /// `sum + x * w`
    fn add<S: Simd>(s: S, sum: S::F, x: S::F, w: S::F) -> S::F;
}

impl<T: Element> Term for T {
    const INTEGER: bool = false;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const T) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { Element::load(s, p) }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, sum: S::F, x: S::F, w: S::F) -> S::F {
        s.fma(x, w, sum)
    }
}

/// Four signed bytes along k, which meet four unsigned ones of x.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Quad(pub(super) [i8; 4]);

impl Term for Quad {
    const INTEGER: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Quad) -> S::F {
        // SAFETY: the caller's promise; a quad is as large as an f32, and only moved here.
        unsafe { s.load(p.cast()) }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, sum: S::F, x: S::F, w: S::F) -> S::F {
        s.of_bits(s.dot(s.bits(sum), s.bits(x), s.bits(w)))
    }
}

/// What the loop reads and writes besides the vectors: see the drawing above.
#[derive(Clone, Copy)]
pub(super) struct Tile<T> {
    pub(super) a: *const f32,
    pub(super) b: *const T,
    /// Steps, at most BLOCK.
    pub(super) k: usize,
    pub(super) c: *mut f32,
    /// Elements between rows of `c`.
    pub(super) pitch: usize,
    /// The first block: `c` is overwritten.
    pub(super) first: bool,
    /// Sums of the columns that each row begins with, in place of zeros; null where there are none.
    pub(super) start: *const f32,
    /// What is fetched meanwhile.
    pub(super) ahead: Ahead,
}

/// Memory that is asked for, some lines at a time, while a loop runs: runs of bytes, a pitch apart. It need not be there. The processor's
/// own prefetching ends with a page, and is late for the short runs of a weight that is not packed.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) from: *const u8,
    pub(super) run: usize,
    pub(super) pitch: usize,
    pub(super) runs: usize,
}

impl Ahead {
    /// Nothing.
    pub(super) const NONE: Ahead = Ahead { from: std::ptr::null(), run: 0, pitch: 0, runs: 0 };
    /// Bytes asked for at a time.
    const STRIDE: usize = 256;

    /// Part `i` of `parts`, one after the other.
    #[inline(always)]
    pub(super) fn part(self, i: usize, parts: usize) -> Ahead {
        if self.runs == 1 {
            let run = (self.run / Ahead::STRIDE).div_ceil(parts) * Ahead::STRIDE;
            return Ahead { from: self.from.wrapping_add(i * run), run, ..self };
        }
        let runs = self.runs.div_ceil(parts);
        Ahead { from: self.from.wrapping_add(i * runs * self.pitch), runs, ..self }
    }
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

/// Lays out elements of LANES rows, of which the first `height` count, as the loop reads them: `to[p * height + i] = from[i * pitch + p]`.
///
/// # Safety
/// `from` holds LANES rows of BLOCK elements, `to` a strip; `height` is at most LANES.
#[inline(always)]
pub(super) unsafe fn interleave<S: Simd>(s: S, from: *const f32, pitch: usize, height: usize, to: *mut f32) {
    for p in (0..BLOCK).step_by(S::LANES) {
        // SAFETY: LANES divides BLOCK, and behind a strip there is room.
        unsafe { s.transpose_some(from.add(p), pitch, to.add(p * height), height) };
    }
}

/// A strip of the given height by a panel.
///
/// # Safety
/// `a` holds the strip, `b` k steps of PANEL terms, `c` as many rows of PANEL at the pitch.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd, T: Term>(s: S, height: usize, t: Tile<T>) {
    macro_rules! heights {
        ($($height:literal)*) => {
            match height {
                $($height => s.outline(
                    #[inline(always)]
                    // SAFETY: the caller's promise.
                    || unsafe { columns::<S, T, $height>(s, t) },
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
unsafe fn columns<S: Simd, T: Term, const M: usize>(s: S, t: Tile<T>) {
    let mut j = 0;
    while j < PANEL {
        let ahead = if j == 0 { t.ahead } else { Ahead::NONE };
        let start = if t.start.is_null() { t.start } else { t.start.wrapping_add(j) };
        // SAFETY: 2 LANES divide PANEL.
        unsafe { registers::<S, T, M>(s, Tile { b: t.b.add(j), c: t.c.add(j), start, ahead, ..t }) }
        j += 2 * S::LANES;
    }
}

#[inline(always)]
unsafe fn registers<S: Simd, T: Term, const M: usize>(s: S, t: Tile<T>) {
    let mut acc = [[s.zero(); 2]; M];
    // SAFETY: p < k, i < M, two vectors of columns.
    unsafe {
        if !t.start.is_null() {
            acc = [[s.load(t.start), s.load(t.start.add(S::LANES))]; M];
        }
        let (mut a, mut b, mut p) = (t.a, t.b, 0);
        let Ahead { from: mut ahead, run, pitch, runs } = t.ahead;
        let parts = run.div_ceil(Ahead::STRIDE) * runs;
        let steps = t.k.checked_div(parts).map_or(t.k, |steps| steps.max(1));
        let mut fetched = 0;
        while p < t.k {
            if parts > 0 {
                let mut line = 0;
                while line < Ahead::STRIDE {
                    s.prefetch_far(ahead.wrapping_add(fetched + line));
                    line += 64;
                }
                fetched += Ahead::STRIDE;
                if fetched >= run {
                    (ahead, fetched) = (ahead.wrapping_add(pitch), 0);
                }
            }
            let end = t.k.min(p + steps);
            while p < end {
                let (b0, b1) = (T::load(s, b), T::load(s, b.add(S::LANES)));
                let mut i = 0;
                while i < M {
                    let x = s.splat(*a.add(i));
                    acc[i] = [T::add(s, acc[i][0], x, b0), T::add(s, acc[i][1], x, b1)];
                    i += 1;
                }
                (a, b) = (a.add(M), b.add(PANEL));
                p += 1;
            }
        }
        let mut i = 0;
        while i < M {
            let mut v = 0;
            while v < 2 {
                let c = t.c.add(i * t.pitch + v * S::LANES);
                let sum = match (T::INTEGER, t.first) {
                    (_, true) => acc[i][v],
                    (false, false) => s.add(s.load(c), acc[i][v]),
                    (true, false) => s.of_bits(s.add_i(s.bits(s.load(c)), s.bits(acc[i][v]))),
                };
                s.store(c, sum);
                v += 1;
            }
            i += 1;
        }
    }
}
