//! Few rows of x: each row of the weight is streamed once, in its stored form, and multiplied with all of them.
//!
//! A dot product runs in four vectors of partial sums over the whole row, added up in a fixed order at its end. The order differs from
//! the tile's, so results of this kernel are not those of the same row in a larger call.

use super::{tile::BLOCK, weight::Weight};
use crate::cpu::simd::{Element, Simd, element};

/// The most rows of x.
pub(crate) const ROWS: usize = 4;

/// `c[i][j - from] = x[i] . w[j]` for the rows `from .. to` of the weight; `x` is f32 `[m][pitch]`.
///
/// # Safety
/// `m` is 1 to ROWS, the rows exist, `x` has k elements in each row, `c` rows of `c_pitch`.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(
    s: S,
    m: usize,
    (x, pitch): (*const f32, usize),
    w: &Weight,
    (from, to): (usize, usize),
    (c, c_pitch): (*mut f32, usize),
) {
    for j in from..to {
        // SAFETY: the caller's promise.
        unsafe {
            let c = c.add(j - from);
            match m {
                1 => dot::<S, 1>(s, (x, pitch), w, j, (c, c_pitch)),
                2 => dot::<S, 2>(s, (x, pitch), w, j, (c, c_pitch)),
                3 => dot::<S, 3>(s, (x, pitch), w, j, (c, c_pitch)),
                _ => dot::<S, 4>(s, (x, pitch), w, j, (c, c_pitch)),
            }
        }
    }
}

#[inline(always)]
unsafe fn dot<S: Simd, const M: usize>(
    s: S,
    (x, pitch): (*const f32, usize),
    w: &Weight,
    j: usize,
    (c, c_pitch): (*mut f32, usize),
) {
    let (k, spec) = (w.k(), w.tensor.spec);
    let mut acc = [[s.zero(); 4]; M];
    // SAFETY: ranges stay inside the row.
    unsafe {
        let straight = spec.stride(0) == 1 && w.scales.is_none() && w.tensor.dtype().is_float();
        if straight {
            let e = j * spec.stride(1);
            let _ = element!(w.tensor.dtype(), T => add::<S, T, M>(s, w.element(e), (x, pitch), k, &mut acc));
        } else {
            let mut values = std::mem::MaybeUninit::<[f32; BLOCK]>::uninit();
            let values: *mut f32 = values.as_mut_ptr().cast();
            for at in (0..k).step_by(BLOCK) {
                let len = BLOCK.min(k - at);
                w.row(s, j, at..at + len, values);
                add::<S, f32, M>(s, values, (x.add(at), pitch), len, &mut acc);
            }
        }
        for (i, a) in acc.iter().enumerate() {
            *c.add(i * c_pitch) = s.sum(s.add(s.add(a[0], a[1]), s.add(a[2], a[3])));
        }
    }
}

/// Adds the products of `n` elements to the partial sums.
#[inline(always)]
unsafe fn add<S: Simd, T: Element, const M: usize>(
    s: S,
    w: *const T,
    (x, pitch): (*const f32, usize),
    n: usize,
    acc: &mut [[S::F; 4]; M],
) {
    let mut p = 0;
    // SAFETY: indices stay below n.
    unsafe {
        while p + 4 * S::LANES <= n {
            let mut v = 0;
            while v < 4 {
                let at = p + v * S::LANES;
                let weights = T::load(s, w.add(at));
                let mut i = 0;
                while i < M {
                    acc[i][v] = s.fma(s.load(x.add(i * pitch + at)), weights, acc[i][v]);
                    i += 1;
                }
                v += 1;
            }
            p += 4 * S::LANES;
        }
        while p < n {
            let some = S::LANES.min(n - p);
            let weights = T::load_partial(s, w.add(p), some);
            let mut i = 0;
            while i < M {
                acc[i][0] = s.fma(s.load_partial(x.add(i * pitch + p), some), weights, acc[i][0]);
                i += 1;
            }
            p += some;
        }
    }
}
