//! What follows the product: scales, bias, activation, the gate's second factor, residual, conversion.

use super::tile::{PANEL, Sum};
use crate::{
    cpu::{
        kernel::Tensor,
        simd::{Simd, math, row},
    },
    dtype::DType,
    op::Activation,
};

/// The most columns finished at once.
pub(super) const COLUMNS: usize = 4 * PANEL;

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

impl Epilogue<'_> {
    /// Finishes columns `j .. j + n` of row `i` of a matrix whose first row is row `first` of `out`. `c` holds the sums (and
    /// is overwritten), `up` those of the second factor.
    ///
    /// # Safety
    /// The columns exist and are at most COLUMNS; `c` and `up` have room for them rounded up to whole vectors.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(
        &self,
        s: S,
        (first, i): (usize, usize),
        (j, n): (usize, usize),
        c: *mut f32,
        up: Option<*const f32>,
    ) {
        let row = first + i;
        let (to, stride) = (self.out.at::<u8>(row, j), self.out.spec.stride(0));
        let mut other = [0f32; COLUMNS];
        let other = other.as_mut_ptr();
        // SAFETY: every operand has these rows and columns; buffers hold whole vectors.
        unsafe {
            macro_rules! each {
                ($x:ident, $at:ident => $e:expr) => {
                    for $at in (0..n).step_by(S::LANES) {
                        let $x = s.load(c.add($at));
                        s.store(c.add($at), $e);
                    }
                };
            }
            if self.sum == Sum::Integer {
                if self.out.dtype() == DType::I32 {
                    (0..n).for_each(|v| *to.cast::<i32>().add(v * stride) = *c.add(v).cast::<i32>());
                    return;
                }
                each!(x, _at => s.float(s.bits(x)));
            }
            if let Some(scale) = self.x_scale {
                let scale = s.splat(*scale.at::<f32>(0, i));
                each!(x, _at => s.mul(x, scale));
            }
            if let Some(scale) = self.w_scale {
                let (at, stride) = if scale.spec.dim(0) == 1 { (0, 0) } else { (j, scale.spec.stride(0)) };
                row::read(s, DType::F32, scale.at(0, at), stride, other, n);
                each!(x, at => s.mul(x, s.load(other.add(at))));
            }
            if let Some(bias) = self.bias {
                row::read(s, bias.dtype(), bias.at(0, j), bias.spec.stride(0), other, n);
                each!(x, at => s.add(x, s.load(other.add(at))));
            }
            if self.act != Activation::None {
                each!(x, _at => math::activate(s, self.act, x));
            }
            if let Some(up) = up {
                each!(x, at => s.mul(x, s.load(up.add(at))));
            }
            if self.scale != 1.0 {
                let scale = s.splat(self.scale);
                each!(x, _at => s.mul(x, scale));
            }
            if let Some(scale) = self.row_scale {
                let scale = s.splat(*scale.at::<f32>(0, row));
                each!(x, _at => s.mul(x, scale));
            }
            if let Some(r) = self.residual {
                row::read(s, r.dtype(), r.at(row, j), r.spec.stride(0), other, n);
                each!(x, at => s.add(x, s.load(other.add(at))));
            }
            row::write(s, self.out.dtype(), c, to, stride, n);
        }
    }
}
