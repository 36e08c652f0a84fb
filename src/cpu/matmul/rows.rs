//! Few rows of x: rows of the weight are streamed once, in their stored form, and multiplied with all of them.
//!
//! ```text
//! x: [M][k] f32       w: some rows at once       sums: [R][M] dot products, a vector or two of partial sums each
//! ```
//!
//! A dot product runs over the whole row and is added up in a fixed order at its end. The order differs from the tile's, so results of this
//! kernel are not those of the same row in a larger call.
//!
//! Traffic: the weight once from memory, x once from the caches for every R rows of the weight; R is such that the sums fit the
//! registers. What is needed a kilobyte later is asked for ahead, at the end of a row what comes first in the next rows; but four rows of f32 with short
//! vectors are streams that the processor follows itself (Zen 3, 1 x 4096 by 4096 squared from memory: two rows with asking 5.5 ms, four with 4.8,
//! four without 3.7, OpenBLAS 3.8; of bf16 3.3, 2.7 and 3.5). Not timed on Arm. Before, each row of the
//! weight by itself: four rows of x, 64 KiB of them at k = 4096, then took twice as long as one.

use std::mem::MaybeUninit;

use super::{tile::BLOCK, weight::Weight};
use crate::cpu::simd::{Element, Simd, element};

/// The most rows of x.
pub(crate) const ROWS: usize = 8;
/// Bytes of a row between what is read and what is asked for.
const AHEAD: usize = 1024;

/// `c[i][j - from] = x[i] . w[j]` for the rows `from .. to` of the weight; `x` is f32 `[m][pitch]`.
///
/// # Safety
/// `m` is 1 to ROWS, the rows exist, `x` has k elements in each row, `c` rows of `c_pitch`.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(
    s: S,
    m: usize,
    x: (*const f32, usize),
    w: &Weight,
    (from, to): (usize, usize),
    (c, c_pitch): (*mut f32, usize),
) {
    let spec = w.tensor.spec;
    let straight = spec.stride(0) == 1 && w.scales.is_none() && w.tensor.dtype().is_float();
    // SAFETY: the caller's promise.
    unsafe {
        macro_rules! each {
            ($($m:literal: $r:literal $v:literal, $few:literal $short:literal;)*) => {
                match m {
                    $($m => {
                        let r = if S::LANES == 16 { $r } else { $few };
                        let mut j = from;
                        while straight && j + r <= to {
                            let (e, c) = (j * spec.stride(1), (c.add(j - from), c_pitch));
                            let _ = element!(w.tensor.dtype(), T => if const { S::LANES == 16 } {
                                straight_rows::<S, T, $m, $r, $v>(s, x, (w.element(e), spec.stride(1)), w.k(), c);
                            } else {
                                straight_rows::<S, T, $m, $few, $short>(s, x, (w.element(e), spec.stride(1)), w.k(), c);
                            });
                            j += r;
                        }
                        while j < to {
                            let c = (c.add(j - from), c_pitch);
                            if const { S::LANES == 16 } {
                                any_row::<S, $m, $v>(s, x, w, j, c);
                            } else {
                                any_row::<S, $m, $short>(s, x, w, j, c);
                            }
                            j += 1;
                        }
                    })*
                    _ => unreachable!("{m} rows are not few"),
                }
            };
        }
        // Rows of x: rows of the weight and vectors of partial sums with vectors of 16, and of fewer.
        each!(
            1: 4 2, 4 2; 2: 4 2, 4 1; 3: 4 1, 2 1; 4: 4 1, 2 1; 5: 4 1, 1 1; 6: 4 1, 1 1; 7: 2 1, 1 1; 8: 2 1, 1 1;
        );
    }
}

/// R rows of the weight, of a float type and without gaps.
#[inline(always)]
unsafe fn straight_rows<S: Simd, T: Element, const M: usize, const R: usize, const V: usize>(
    s: S,
    x: (*const f32, usize),
    w: (*const T, usize),
    k: usize,
    c: (*mut f32, usize),
) {
    let mut acc = [[[s.zero(); V]; M]; R];
    // SAFETY: the caller's promise.
    unsafe {
        add::<S, T, M, R, V>(s, x, w, k, &mut acc);
        finish(s, &acc, c);
    }
}

/// A row of any weight.
#[inline(always)]
unsafe fn any_row<S: Simd, const M: usize, const V: usize>(
    s: S,
    (x, pitch): (*const f32, usize),
    w: &Weight,
    j: usize,
    c: (*mut f32, usize),
) {
    let k = w.k();
    let mut acc = [[[s.zero(); V]; M]; 1];
    let mut values = MaybeUninit::<[f32; BLOCK]>::uninit();
    let values: *mut f32 = values.as_mut_ptr().cast();
    // SAFETY: ranges stay inside the row.
    unsafe {
        for at in (0..k).step_by(BLOCK) {
            let len = BLOCK.min(k - at);
            w.row(s, j, at..at + len, values);
            add::<S, f32, M, 1, V>(s, (x.add(at), pitch), (values, BLOCK), len, &mut acc);
        }
        finish(s, &acc, c);
    }
}

/// Adds the products of `n` elements to the partial sums.
#[inline(always)]
unsafe fn add<S: Simd, T: Element, const M: usize, const R: usize, const V: usize>(
    s: S,
    (x, pitch): (*const f32, usize),
    (w, w_pitch): (*const T, usize),
    n: usize,
    acc: &mut [[[S::F; V]; M]; R],
) {
    let (mut p, bytes) = (0, 2 * S::LANES * size_of::<T>());
    // One vector of each row: `x` and `w` say how it is read. (Closures would not be inlined.)
    macro_rules! step {
        ($v:expr, $i:ident => $x:expr, $r:ident => $w:expr) => {{
            let mut xs = [s.zero(); M];
            let mut $i = 0;
            while $i < M {
                xs[$i] = $x;
                $i += 1;
            }
            let mut $r = 0;
            while $r < R {
                let weights = $w;
                let mut i = 0;
                while i < M {
                    acc[$r][i][$v % V] = s.fma(xs[i], weights, acc[$r][i][$v % V]);
                    i += 1;
                }
                $r += 1;
            }
        }};
    }
    // SAFETY: indices stay below n; what is asked for need not be there.
    unsafe {
        while p + 2 * S::LANES <= n {
            let later = p + AHEAD / size_of::<T>();
            let later = if later < n { w.wrapping_add(later) } else { w.wrapping_add(R * w_pitch + later - n) };
            let mut r = 0;
            while const { S::LANES == 16 || size_of::<T>() < 4 || R < 4 } && r < R {
                let (from, mut line) = (later.wrapping_add(r * w_pitch).cast::<u8>(), 0);
                while line < bytes {
                    s.prefetch(from.wrapping_add(line));
                    line += 64;
                }
                r += 1;
            }
            let mut v = 0;
            while v < 2 {
                step!(v, i => s.load(x.add(i * pitch + p)), r => T::load(s, w.add(r * w_pitch + p)));
                p += S::LANES;
                v += 1;
            }
        }
        let mut v = 0;
        while p < n {
            let some = S::LANES.min(n - p);
            step!(v, i => s.load_partial(x.add(i * pitch + p), some), r => T::load_partial(s, w.add(r * w_pitch + p), some));
            p += some;
            v += 1;
        }
    }
}

/// Adds up the partial sums.
#[inline(always)]
unsafe fn finish<S: Simd, const M: usize, const R: usize, const V: usize>(
    s: S,
    acc: &[[[S::F; V]; M]; R],
    (c, pitch): (*mut f32, usize),
) {
    for (r, row) in acc.iter().enumerate() {
        for (i, sums) in row.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *c.add(i * pitch + r) = s.sum(if V == 2 { s.add(sums[0], sums[V - 1]) } else { sums[0] }) };
        }
    }
}
