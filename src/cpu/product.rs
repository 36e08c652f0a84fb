//! Products of small f32 matrices that lie in the cache: what attention is made of.
//!
//! `C[m][n] = (C or 0) + sum_k A[m, k] B[k][n]`. Vectors go along n; a block of 4 x NV vectors of C (6 x NV with 32 registers,
//! 5 % faster) stays in registers while k runs, each step loading NV vectors of B and repeating as many numbers of A. A may lie in
//! any order, so that no operand ever has to be transposed. Each element is one chain of additions over k: its bits do not depend
//! on the sizes m and n.

use super::simd::Simd;

/// A matrix that is read number by number: element (m, k) lies at `pointer[m * row + k * column]`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) pointer: *const f32,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// A matrix that is read and written in vectors along its rows, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) pointer: *mut f32,
    pub(crate) stride: usize,
}

impl Rows {
    /// The rows from `row` on.
    ///
    /// # Safety
    /// The matrix has the row.
    #[inline(always)]
    pub(crate) unsafe fn from(self, row: usize) -> Rows {
        // SAFETY: the caller's promise.
        Rows { pointer: unsafe { self.pointer.add(row * self.stride) }, ..self }
    }
}

/// What the product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// Nothing.
    Zero,
    /// C.
    Keep,
    /// C, column n times `factors[n]`.
    Columns(*const f32),
    /// C, row m times `factors[m]`.
    RowFactors(*const f32),
}

/// # Safety
/// A is readable at (m, k), B for k rows of n numbers, C writable for m rows of n; factors are as many as they factor. n is a multiple of
/// `S::LANES`. C overlaps nothing else.
#[inline(always)]
pub(crate) unsafe fn product<S: Simd>(s: S, (m, n, k): (usize, usize, usize), a: Left, b: Rows, c: Rows, start: Start) {
    // As many vectors as the registers hold: 32 of them, or 16.
    let wide = if S::LANES == 16 { 4 } else { 2 };
    let mut j = 0;
    while j < n {
        let left = (n - j) / S::LANES;
        let vectors = if left >= wide { wide } else { left.min(2) };
        // SAFETY: column j exists, and so do `vectors` vectors from there.
        unsafe {
            let b = Rows { pointer: b.pointer.add(j), ..b };
            let c = Rows { pointer: c.pointer.add(j), ..c };
            let start = match start {
                Start::Columns(factors) => Start::Columns(factors.add(j)),
                other => other,
            };
            match vectors {
                4 => columns::<S, 4>(s, m, k, a, b, c, start),
                2 => columns::<S, 2>(s, m, k, a, b, c, start),
                _ => columns::<S, 1>(s, m, k, a, b, c, start),
            }
        }
        j += vectors * S::LANES;
    }
}

/// # Safety
/// As for `product`, with n = NV vectors.
#[inline(always)]
unsafe fn columns<S: Simd, const NV: usize>(s: S, m: usize, k: usize, a: Left, b: Rows, c: Rows, start: Start) {
    let mut i = 0;
    // SAFETY: i stays below m.
    unsafe {
        while S::LANES == 16 && i + 6 <= m {
            block::<S, 6, NV>(s, i, k, a, b, c, start);
            i += 6;
        }
        while i + 4 <= m {
            block::<S, 4, NV>(s, i, k, a, b, c, start);
            i += 4;
        }
        while i < m {
            block::<S, 1, NV>(s, i, k, a, b, c, start);
            i += 1;
        }
    }
}

/// # Safety
/// As for `columns`, with rows `i .. i + MR` of A and C.
#[inline(always)]
unsafe fn block<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    i: usize,
    k: usize,
    a: Left,
    b: Rows,
    c: Rows,
    start: Start,
) {
    let mut sums = [[s.zero(); NV]; MR];
    // SAFETY: inside A's, B's and C's extents, as the caller promises.
    unsafe {
        let left = a.pointer.add(i * a.row);
        let out = c.pointer.add(i * c.stride);
        for (r, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                let at = out.add(r * c.stride + v * S::LANES);
                *sum = match start {
                    Start::Zero => s.zero(),
                    Start::Keep => s.load(at),
                    Start::Columns(factors) => s.mul(s.load(at), s.load(factors.add(v * S::LANES))),
                    Start::RowFactors(factors) => s.mul(s.load(at), s.splat(*factors.add(i + r))),
                };
            }
        }
        for p in 0..k {
            let row = b.pointer.add(p * b.stride);
            let mut right = [s.zero(); NV];
            for (v, right) in right.iter_mut().enumerate() {
                *right = s.load(row.add(v * S::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let number = s.splat(*left.add(r * a.row + p * a.column));
                for (sum, &right) in sums.iter_mut().zip(&right) {
                    *sum = s.fma(number, right, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                s.store(out.add(r * c.stride + v * S::LANES), sum);
            }
        }
    }
}
