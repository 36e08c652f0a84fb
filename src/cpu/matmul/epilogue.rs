//! What follows the product: scales, bias, activation, the gate's second factor, residual, conversion.

use std::{mem::MaybeUninit, ops::Range};

use super::tile::PANEL;
use crate::{
    cpu::{
        kernel::Tensor,
        simd::{Simd, math, row},
    },
    dtype::DType,
    op::Activation,
};

/// The most columns finished at once.
pub(super) const COLUMNS: usize = 2 * PANEL;

/// What the sums are.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sum {
    /// f32.
    Float,
    /// i32.
    Integer,
}

/// Everything between the sums and the output.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    pub(crate) sum: Sum,
    /// f32 `[m]`
    pub(crate) x_scale: Option<Tensor<'a>>,
    /// f32 `[n]` or `[1]`
    pub(crate) w_scale: Option<Tensor<'a>>,
    /// `[n]`
    pub(crate) bias: Option<Tensor<'a>>,
    pub(crate) act: Activation,
    pub(crate) scale: f32,
    /// f32, one for each row of `out`.
    pub(crate) row_scale: Option<Tensor<'a>>,
    pub(crate) residual: Option<Tensor<'a>>,
    pub(crate) out: Tensor<'a>,
}

/// Sums in memory: rows a pitch apart, writable, with room for whole vectors.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) c: *mut f32,
    /// Those of the second factor.
    pub(super) up: Option<*const f32>,
    pub(super) pitch: usize,
}

impl Epilogue<'_> {
    /// Finishes columns `j .. j + n` of some rows of a matrix whose first row is row `first` of `out`. The sums begin with the first
    /// of these rows and columns, and are overwritten.
    ///
    /// # Safety
    /// The rows and columns exist; these are at most COLUMNS; the sums are there.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(
        &self,
        s: S,
        (first, rows): (usize, Range<usize>),
        (j, n): (usize, usize),
        sums: Sums,
    ) {
        let (stride, bare) = (self.out.spec.stride(0), self.is_bare() && sums.up.is_none());
        let mut columns = MaybeUninit::<[[f32; COLUMNS]; 3]>::uninit();
        let columns = columns.as_mut_ptr().cast::<f32>();
        // SAFETY: every operand has these rows and columns; buffers hold whole vectors.
        unsafe {
            let (factors, offsets, other) = (columns, columns.add(COLUMNS), columns.add(2 * COLUMNS));
            if !bare {
                // Whole vectors are read.
                (0..3).for_each(|i| s.store(columns.add(i * COLUMNS + n / S::LANES * S::LANES % COLUMNS), s.zero()));
                if let Some(scale) = self.w_scale {
                    let (at, stride) = if scale.spec.dim(0) == 1 { (0, 0) } else { (j, scale.spec.stride(0)) };
                    row::read(s, DType::F32, scale.at(0, at), stride, factors, n);
                }
                if let Some(bias) = self.bias {
                    row::read(s, bias.dtype(), bias.at(0, j), bias.spec.stride(0), offsets, n);
                }
            }
            let (to, to_pitch) = self.out.matrix(first + rows.start, j);
            let residual = self.residual.map(|r| (r, r.matrix(first + rows.start, j)));
            for i in rows.clone() {
                let at = i - rows.start;
                let (row, c) = (first + i, sums.c.add(at * sums.pitch));
                let to = to.add(at * to_pitch);
                macro_rules! each {
                    ($x:ident, $at:ident => $e:expr) => {
                        for $at in (0..n).step_by(S::LANES) {
                            let $x = s.load(c.add($at));
                            s.store(c.add($at), $e);
                        }
                    };
                }
                if bare {
                    // As f32, whatever they are: nothing but moved.
                    let (to, whole) = (to.cast::<f32>(), n / S::LANES * S::LANES);
                    for v in (0..whole).step_by(S::LANES) {
                        s.store(to.add(v), s.load(c.add(v)));
                    }
                    if whole < n {
                        s.store_partial(to.add(whole), s.load(c.add(whole)), n - whole);
                    }
                    continue;
                }
                if self.sum == Sum::Integer {
                    if self.out.dtype() == DType::I32 {
                        (0..n).for_each(|v| *to.cast::<i32>().add(v * stride) = *c.add(v).cast::<i32>());
                        continue;
                    }
                    each!(x, _at => s.float(s.bits(x)));
                }
                if let Some(scale) = self.x_scale {
                    let scale = s.splat(*scale.at::<f32>(0, i));
                    each!(x, _at => s.mul(x, scale));
                }
                if self.w_scale.is_some() {
                    each!(x, at => s.mul(x, s.load(factors.add(at))));
                }
                if self.bias.is_some() {
                    each!(x, at => s.add(x, s.load(offsets.add(at))));
                }
                if self.act != Activation::None {
                    each!(x, _at => math::activate(s, self.act, x));
                }
                if let Some(up) = sums.up {
                    let (up, integer) = (up.add(at * sums.pitch), self.sum == Sum::Integer);
                    each!(x, at => {
                        let u = s.load(up.add(at));
                        s.mul(x, if integer { s.float(s.bits(u)) } else { u })
                    });
                }
                if self.scale != 1.0 {
                    let scale = s.splat(self.scale);
                    each!(x, _at => s.mul(x, scale));
                }
                if let Some(scale) = self.row_scale {
                    let scale = s.splat(*scale.at::<f32>(0, row));
                    each!(x, _at => s.mul(x, scale));
                }
                if let Some((r, (from, pitch))) = residual {
                    row::read(s, r.dtype(), from.add(at * pitch), r.spec.stride(0), other, n);
                    each!(x, at => s.add(x, s.load(other.add(at))));
                }
                row::write(s, self.out.dtype(), c, to, stride, n);
            }
        }
    }

    /// Element `j` of row `row` of a bare output, and elements from row to row.
    pub(super) fn bare(&self, row: usize, j: usize) -> (*mut f32, usize) {
        let (to, pitch) = self.out.matrix(row, j);
        (to.cast(), pitch / size_of::<f32>())
    }

    /// True where the sums are the output.
    pub(super) fn is_bare(&self) -> bool {
        let same = match self.sum {
            Sum::Float => self.out.dtype() == DType::F32,
            Sum::Integer => self.out.dtype() == DType::I32,
        };
        let operands = [self.x_scale, self.w_scale, self.bias, self.row_scale, self.residual];
        let alone = operands.iter().all(Option::is_none) && self.act == Activation::None && self.scale == 1.0;
        same && alone && self.out.spec.stride(0) == 1
    }
}
