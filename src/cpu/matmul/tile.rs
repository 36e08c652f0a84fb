//! The innermost loop: some rows of x times a panel of [`PANEL`] columns of wᵀ, over one block of k.
//!
//! ```text
//! a: strips of [k / 16][height][16] f32        b: slices of [k][slice] f32, f16 or bf16        c: [rows][..] f32
//!    or [words / 16][height][16]                  or [words][slice]                             or i32
//! ```
//!
//! Words are four bytes, or two bf16, one after the other in k. A slice has the columns that three to six rows are multiplied with at a time: 64 with 32
//! vectors of 16 lanes, 16 with 32 of 4 or 16 of 8. It is read from end to end: with lines 256 bytes apart, the others of them brought along by the processor, a Zen 3
//! did 70 to 74 GFLOP/s in the loop alone where it does 90 to 92 (of 97, neighbours quiet): 18 strips by 16 panels. Whole products gain less, medians of three
//! quiet runs: 1024 cubed 27.6 and 26.4 ms, 8 rows by 4096 squared 6.7 and 5.8, 32 rows 15 and 14.
//!
//! Sums stay in registers over a block: 6 x 64 with 32 vectors of 16 lanes, 6 x 16 with 32 of 4; with 16 of 8 6 x 16, 2 x 32 and 1 x 64. Every element is the sum
//! over p = 0, 1, 2, .. of one block by fused multiply-adds, plus what came from the blocks before: the same order
//! whatever the number of rows, so that a row's result does not depend on the others.
//!
//! A step is 4 loads, 6 broadcasts and 24 multiply-adds, four steps to a turn of the loop. A strip (6 KiB) stays in the first cache; the panel comes
//! from the second: a slice of 64 columns asked for 8 steps ahead, 256 bytes in 12 cycles; one of 16, which the first cache holds, is not asked for (no slower on a Zen 3; not timed with NEON). A strip keeps lines of its rows together, so that cutting x into
//! strips is copying. The rows of a call are cut into strips of one height ([`height`]): time does not fall where a row is added. Sums that
//! need nothing else are stored straight into the output.
//!
//! The loop alone, x and panels ready, GFLOP/s in turns, of 179 that multiply-adds reach, on a core that is shared with another tenant's
//! thread (quiet in brackets): 256 cubed 134 (170), 1024 cubed 124 (147), 333 x 777 x 555 110 (139), 128 x 4096 x 4096 117 (126).
//! Tried and lost: 14 x 32, equal where the core is quiet, else 116, 112, 102 and 103: it has 1.6 instructions to a multiply-add (here 1.4), and
//! its panel and strips fill the first cache; 8 x 48: 119, 120, 105, 119; blocks of 128 or 192 steps, x asked for ahead,
//! 8 steps to a turn: no faster; x as `[k][height]`, for which 16 x 16 squares are turned: 4 % of 256 cubed; the dot product of bf16 pairs, which this
//! processor (Xeon, model 207) starts every second cycle: half of f32 (used where it is faster, [`Pair`]).
//!
//! Few rows from memory, 4 and 8 by 4096 squared in f32: 5.0 and 6.5 ms where one row takes 3.2 and 8 rows from the second cache 2.1 to 3.5.
//! Tried, all within the noise of 5 %: every second or fourth line asked for, two panels ahead, 8 to 64 steps ahead into the first cache; the kernel
//! by [`rows`](super::rows), 1 to 4 KiB ahead. Nothing asked for: 20 % more. Tasks of 256 to 1024 columns in place of 128: no difference either, nor
//! three vectors for the last 33 to 48 columns.

use crate::cpu::simd::{Element, HALVES_RUN, Simd};

/// Columns of a panel.
pub(crate) const PANEL: usize = 64;
/// Steps between two visits of `c`: elements of k (whole blocks of every quantized format), or words.
pub(crate) const BLOCK: usize = 256;

/// What a panel holds, and what one step of the loop does with it. Numbers of x lie in the strips as f32, or as words in its place.
pub(super) trait Term: Copy + 'static {
    /// True where sums are i32 in the place of f32.
    const INTEGER: bool;
    /// Elements of k in a term.
    const ELEMENTS: usize = 1;

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
    const ELEMENTS: usize = 4;

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

/// Two bf16 along k.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Pair([u16; 2]);

impl Term for Pair {
    const INTEGER: bool = false;
    const ELEMENTS: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Pair) -> S::F {
        // SAFETY: the caller's promise; a pair is as large as an f32, and only moved here.
        unsafe { s.load(p.cast()) }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, sum: S::F, x: S::F, w: S::F) -> S::F {
        s.dot_bf16(sum, s.bits(x), s.bits(w))
    }
}

/// What the loop reads and writes besides the vectors: see the drawing above.
#[derive(Clone, Copy)]
pub(super) struct Tile<T> {
    pub(super) a: *const f32,
    pub(super) b: *const T,
    /// Terms, at most BLOCK.
    pub(super) k: usize,
    pub(super) c: *mut f32,
    /// Elements between rows of `c`.
    pub(super) pitch: usize,
    /// Columns that are wanted: at most PANEL.
    pub(super) columns: usize,
    /// The first block: `c` is overwritten.
    pub(super) first: bool,
    /// Sums of the columns that each row begins with, in place of zeros; null where there are none.
    pub(super) start: *const f32,
    /// What is fetched meanwhile.
    pub(super) ahead: Share,
    /// Where the sums go in place of `c`, and elements between rows there; null where they stay in `c`.
    pub(super) to: (*mut f32, usize),
}

/// Memory that is asked for, some lines at a time, while loops run: runs of bytes, a pitch apart. It need not be there. The processor's
/// own prefetching ends with a page, and is late for the short runs of a weight that is not packed.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) from: *const u8,
    pub(super) run: usize,
    pub(super) pitch: usize,
    pub(super) runs: usize,
}

/// What one of several loops asks for: `each` parts at a visit, a visit every `steps`.
#[derive(Clone, Copy)]
pub(super) struct Share {
    from: *const u8,
    run: usize,
    pitch: usize,
    each: usize,
    steps: usize,
    /// Bytes from one loop's share to the next.
    next: usize,
}

impl Share {
    /// Bytes asked for at a time.
    const PART: usize = 256;

    /// That of the next loop.
    #[inline(always)]
    pub(super) fn next(self) -> Share {
        Share { from: self.from.wrapping_add(self.next), ..self }
    }
}

impl Ahead {
    /// Nothing.
    pub(super) const NONE: Ahead = Ahead { from: std::ptr::null(), run: 0, pitch: 0, runs: 0 };

    /// The first of the shares of so many loops, of k steps each.
    #[inline(always)]
    pub(super) fn share(self, loops: usize, k: usize) -> Share {
        let Ahead { from, mut run, pitch, mut runs } = self;
        let next = if runs == 1 {
            run = (run / Share::PART).div_ceil(loops) * Share::PART;
            run
        } else {
            runs = runs.div_ceil(loops);
            runs * pitch
        };
        let (parts, groups) = (run.div_ceil(Share::PART) * runs, k.div_ceil(UNROLL).max(1));
        let each = parts.div_ceil(groups);
        let steps = groups.checked_div(parts.div_ceil(each.max(1))).map_or(usize::MAX, |some| some * UNROLL);
        Share { from, run, pitch, each, steps, next }
    }
}

/// Elements of a row that lie together in a strip: a line of memory.
pub(super) const RUN: usize = 16;
/// Steps of the loop written out, so that little is done beside them: a core whose other thread is busy decodes half as many instructions.
const UNROLL: usize = 4;
/// Steps between what is read of a panel and what is asked for.
const LATER: usize = 8;

/// Rows of x that a strip has at most.
pub(super) const TALLEST: usize = 6;

/// The height of the strips that so many rows are cut into, all of one height: as few strips as the registers allow, then as
/// low as they can be. (Were the last one shorter, few rows over a whole strip would cost as much as many.)
pub(super) fn height(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(TALLEST).max(1)).max(1)
}

/// Elements of scratch memory between strips of this height.
pub(super) fn strip_pitch(height: usize) -> usize {
    height * BLOCK
}

/// Words of x in a step: four bytes are two where they are multiplied as 16 bits, the even ones in the first half of a run.
pub(super) const fn words<S: Simd, T: Term>() -> usize {
    if T::INTEGER && S::HALVES { 2 } else { 1 }
}

/// A row of BLOCK quads of bytes to its place in a strip of halves.
///
/// # Safety
/// `from` holds a row, `to` a strip from one of its rows on.
#[inline(always)]
unsafe fn place_halves<S: Simd>(s: S, from: *const f32, height: usize, to: *mut f32) {
    let low = s.splat_i(0x00ff_00ff);
    for run in 0..2 * BLOCK / RUN {
        for i in (0..RUN / 2).step_by(S::LANES) {
            // SAFETY: LANES divides RUN / 2, which divides BLOCK.
            unsafe {
                let (u, to) = (s.bits(s.load(from.add(run * RUN / 2 + i))), to.add(run * height * RUN + i));
                s.store(to, s.of_bits(s.and(u, low)));
                s.store(to.add(RUN / 2), s.of_bits(s.and(s.shr::<8>(u), low)));
            }
        }
    }
}

/// A row of BLOCK elements to its place in a strip, whose rows lie `height` runs apart.
///
/// # Safety
/// `from` holds a row, `to` a strip from one of its rows on.
#[inline(always)]
pub(super) unsafe fn place<S: Simd>(s: S, words: usize, from: *const f32, height: usize, to: *mut f32) {
    if const { S::HALVES } && words == 2 {
        // SAFETY: the caller's promise.
        return unsafe { place_halves(s, from, height, to) };
    }
    for run in 0..BLOCK / RUN {
        for i in (0..RUN).step_by(S::LANES) {
            // SAFETY: LANES divides RUN, which divides BLOCK.
            unsafe { s.store(to.add(run * height * RUN + i), s.load(from.add(run * RUN + i))) };
        }
    }
}

/// Vectors of columns that a strip of the given height is multiplied with at a time.
const fn vectors_at_once<S: Simd>(height: usize) -> usize {
    match (S::REGISTERS, height) {
        (32, _) | (_, 2) => 4,
        (_, 1) => 8,
        _ => 2,
    }
}

/// Columns that lie together in a panel, step after step.
pub(crate) const fn slice<S: Simd>() -> usize {
    vectors_at_once::<S>(TALLEST) * S::LANES
}

/// Where column `j` of a panel of so many steps begins, in terms; its steps are a [`slice`] apart.
pub(crate) const fn column<S: Simd>(steps: usize, j: usize) -> usize {
    let slice = slice::<S>();
    j / slice * slice * steps + j % slice
}

/// Columns that are read at most where so many are wanted: whole slices, and for one or two rows 2, 4 or 8 vectors.
pub(crate) const fn touched<S: Simd>(columns: usize) -> usize {
    let (columns, slice) = (columns.next_power_of_two(), slice::<S>());
    if columns < slice { slice } else { columns }
}

/// Which of the terms of a packed panel is the `p`-th of `terms` of row `r`, of `width` rows.
pub(crate) const fn packed<S: Simd>((terms, width): (usize, usize), p: usize, r: usize) -> usize {
    if width < PANEL {
        return p * width + r;
    }
    let block = p / BLOCK * BLOCK;
    let steps = if terms - block < BLOCK { terms - block } else { BLOCK };
    block * PANEL + column::<S>(steps, r) + (p - block) * slice::<S>()
}

/// Columns that a strip of the given height is multiplied with at a time.
pub(super) const fn width<S: Simd>(height: usize) -> usize {
    vectors_at_once::<S>(height) * S::LANES
}

/// A strip of the given height by columns of a panel.
///
/// # Safety
/// `a` holds the strip, `b` slices of k steps, from a multiple of [`width`] on, with the [`touched`] columns; `c` rows with room for those at the pitch.
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
    heights!(1 2 3 4 5 6);
}

/// The columns of the panel, as many vectors at a time as the registers hold sums of.
#[inline(always)]
unsafe fn columns<S: Simd, T: Term, const M: usize>(s: S, t: Tile<T>) {
    const { assert!(PANEL.is_multiple_of(vectors_at_once::<S>(M) * S::LANES)) };
    let mut j = 0;
    while j < t.columns {
        let ahead = if j == 0 { t.ahead } else { Share { each: 0, steps: usize::MAX, ..t.ahead } };
        let start = if t.start.is_null() { t.start } else { t.start.wrapping_add(j) };
        // SAFETY: j is a multiple of the columns of the group that follows, which divide PANEL: none passes the panel's end.
        unsafe {
            let to = if t.to.0.is_null() { t.to } else { (t.to.0.add(j), t.to.1) };
            let part = Tile { b: t.b.add(column::<S>(t.k, j)), c: t.c.add(j), start, ahead, to, ..t };
            let left = t.columns - j;
            if const { vectors_at_once::<S>(M) == 8 } && left > 4 * S::LANES {
                registers::<S, T, M, 8>(s, part);
                j += 8 * S::LANES;
            } else if const { vectors_at_once::<S>(M) >= 4 } && left > 2 * S::LANES {
                registers::<S, T, M, 4>(s, part);
                j += 4 * S::LANES;
            } else {
                registers::<S, T, M, 2>(s, part);
                j += 2 * S::LANES;
            }
        }
    }
}

#[inline(always)]
unsafe fn registers<S: Simd, T: Term, const M: usize, const V: usize>(s: S, t: Tile<T>) {
    let mut acc = [[s.zero(); V]; M];
    // SAFETY: p < k, i < M, V vectors of columns.
    unsafe {
        if !t.start.is_null() {
            acc = [vectors(s, t.start, slice::<S>()); M];
        }
        let (mut a, mut b, mut p) = (t.a, t.b, 0);
        let run_steps = RUN / words::<S, T>();
        let (slice, next) = (const { slice::<S>() }, t.k * slice::<S>());
        let Share { from: mut ahead, run, pitch, each, steps, .. } = t.ahead;
        let mut fetched = 0;
        while p < t.k {
            for _ in 0..each {
                let mut line = 0;
                while line < Share::PART {
                    s.prefetch_far(ahead.wrapping_add(fetched + line));
                    line += 64;
                }
                fetched += Share::PART;
                if fetched >= run {
                    (ahead, fetched) = (ahead.wrapping_add(pitch), 0);
                }
            }
            let end = t.k.min(p.saturating_add(steps));
            while p + UNROLL <= end {
                let mut u = 0;
                while u < UNROLL {
                    step::<S, T, M, V>(s, (a.add(u), b.add(u * slice)), next, &mut acc);
                    u += 1;
                }
                (b, p) = (b.add(UNROLL * slice), p + UNROLL);
                a = a.add(if p.is_multiple_of(run_steps) { M * RUN - run_steps + UNROLL } else { UNROLL });
            }
            while p < end {
                step::<S, T, M, V>(s, (a, b), next, &mut acc);
                (a, b, p) = (a.add(1), b.add(slice), p + 1);
            }
        }
        let (to, to_pitch) = if t.to.0.is_null() { (t.c, t.pitch) } else { t.to };
        let mut i = 0;
        while i < M {
            let mut v = 0;
            while v < V {
                let c = t.c.add(i * t.pitch + v * S::LANES);
                let sum = match (T::INTEGER, t.first) {
                    (_, true) => acc[i][v],
                    (false, false) => s.add(s.load(c), acc[i][v]),
                    (true, false) => s.of_bits(s.add_i(s.bits(s.load(c)), s.bits(acc[i][v]))),
                };
                s.store(to.add(i * to_pitch + v * S::LANES), sum);
                v += 1;
            }
            i += 1;
        }
    }
}

/// V vectors, of slices that begin `next` terms apart.
#[inline(always)]
unsafe fn vectors<S: Simd, T: Term, const V: usize>(s: S, from: *const T, next: usize) -> [S::F; V] {
    let mut all = [s.zero(); V];
    let mut v = 0;
    while v < V {
        let (slice, rest) = (v * S::LANES / slice::<S>(), v * S::LANES % slice::<S>());
        // SAFETY: the caller's promise.
        all[v] = unsafe { T::load(s, from.add(slice * next + rest)) };
        v += 1;
    }
    all
}

/// Adds the products of one step. Asks for what a later one needs where a panel is larger than the first cache; a slice of 16 columns is not, and is
/// read faster without.
#[inline(always)]
unsafe fn step<S: Simd, T: Term, const M: usize, const V: usize>(
    s: S,
    (a, b): (*const f32, *const T),
    next: usize,
    acc: &mut [[S::F; V]; M],
) {
    // SAFETY: the caller has M numbers of x and a step of the panel.
    unsafe {
        let mut line = 0;
        while const { slice::<S>() == PANEL } && line < V * S::LANES * size_of::<T>() {
            s.prefetch(b.wrapping_add(LATER * PANEL).cast::<u8>().wrapping_add(line));
            line += 64;
        }
        if const { words::<S, T>() == 2 } {
            const { assert!(HALVES_RUN == 4 * RUN) };
            return s.add_halves(acc, a, b.cast(), next * size_of::<T>());
        }
        let columns = vectors::<S, T, V>(s, b, next);
        let mut i = 0;
        while i < M {
            let x = s.splat(*a.add(i * RUN));
            let mut v = 0;
            while v < V {
                acc[i][v] = T::add(s, acc[i][v], x, columns[v]);
                v += 1;
            }
            i += 1;
        }
    }
}
