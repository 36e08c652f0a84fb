//! One function of one or two tensors. f32 side by side is computed on where it lies; any other stretch of a row is read to f32 in a small
//! buffer and written from one, so that types, strides and broadcasts multiply neither the functions nor the code. Results that the cache
//! does not hold are stored past it ([`large`]).
//!
//! 512 rows of 4096 f32, AVX-512, one thread, in turns with plain stores, no prefetch and division in the sigmoid, best of many: add 1.00
//! to 0.78 ms, silu times another 1.28 to 1.10, gelu (tanh) 1.38 to 1.11; medians 1.43 to 1.24, 1.46 to 1.20.

use std::sync::Arc;

use super::{
    Device,
    kernel::{Args, Kernel, Tensor},
    pool::Pool,
    row::{large, task_elements},
    simd::{Simd, math, row, simd},
};
use crate::{
    backend::Plans,
    dtype::DType,
    error::Result,
    layout::Spec,
    op::{Elementwise, Features, elementwise::Function},
};

/// Elements of a buffer: small beside the first cache.
const STRETCH: usize = 512;
/// Elements that are asked for before they are computed on: functions take as long as memory does.
const AHEAD: usize = 512;
/// Elements of a task.
const TASK: usize = 16 * STRETCH;

pub(super) fn plan(device: &Arc<Device>, op: &Elementwise) -> Result<Plans> {
    let op = *op;
    let known = Features::BROADCAST | Features::STRIDED;
    let kernel = Kernel::new(device, op, format_args!("elementwise-{}", op.out.dtype()), known)?;
    let flat = op.operands().iter().all(|o| o.spec.is_dense() && o.spec.shape() == op.out.shape());
    let see = |spec: &Spec| match flat {
        true => Spec::new(spec.dtype(), &[spec.numel()]), // one long row
        false => spec.broadcast(op.out.shape()),
    };
    let (a, b, out) = (see(&op.a)?, op.b.as_ref().map(see).transpose()?, see(&op.out)?);
    let (rows, n) = (out.rows(), out.dim(0));
    // A task is some rows, or a part of one.
    let each = task_elements(TASK, &op.out, device.info.threads).next_multiple_of(STRETCH);
    let parts = n.div_ceil(each).max(1);
    let rows_per_task = (each / n.max(1)).max(1);
    let tasks = if n == 0 { 0 } else { rows.div_ceil(rows_per_task) * parts };
    kernel.plan(move |args: &Args, pool: &mut Pool| {
        let b = b.as_ref().zip(args.get("b")).map(|(spec, t)| t.seen_as(spec));
        let (a, out) = (args.of("a").seen_as(&a), args.of("out").seen_as(&out));
        let large = large(args, "out");
        pool.run(tasks, |task, _| {
            let first = task / parts * rows_per_task;
            let columns = task % parts * each..(task % parts * each + each).min(n);
            for row in first..(first + rows_per_task).min(rows) {
                for at in columns.clone().step_by(STRETCH) {
                    let len = STRETCH.min(columns.end - at);
                    // SAFETY: the stretch lies inside row `row` of each operand, and no other task writes it.
                    simd!(args.isa, s => unsafe { stretch(s, &op, (row, at, len), a, b, (out, large)) });
                }
            }
            simd!(args.isa, s => s.fence());
        });
    })
}

/// Columns `at .. at + len` of a row.
#[inline(always)]
unsafe fn stretch<S: Simd>(
    s: S,
    op: &Elementwise,
    (row, at, len): (usize, usize, usize),
    a: Tensor,
    b: Option<Tensor>,
    (out, large): (Tensor, bool),
) {
    let (mut x, mut y, mut z) = ([0f32; STRETCH], [0f32; STRETCH], [0f32; STRETCH]);
    // Whole vectors of f32 side by side are computed on where they lie.
    let lies = |t: &Tensor| t.dtype() == DType::F32 && t.spec.stride(0) == 1 && len.is_multiple_of(S::LANES);
    // SAFETY: the buffers hold len elements, which is at most STRETCH; the operands have these columns.
    unsafe {
        let x = if lies(&a) {
            a.at(row, at)
        } else {
            row::read(s, a.dtype(), a.at(row, at), a.spec.stride(0), x.as_mut_ptr(), len);
            x.as_mut_ptr()
        };
        let (y, z) = (
            match b {
                Some(b) if lies(&b) => b.at(row, at),
                Some(b) => {
                    row::read(s, b.dtype(), b.at(row, at), b.spec.stride(0), y.as_mut_ptr(), len);
                    y.as_mut_ptr()
                }
                None => x,
            },
            if lies(&out) { out.at(row, at) } else { z.as_mut_ptr() },
        );
        let past = large && lies(&out) && z.addr().is_multiple_of(S::LANES * size_of::<f32>());
        let (alpha, beta) = (s.splat(op.alpha.get()), s.splat(op.beta.get()));
        // One loop per function: the choice is made once per stretch.
        macro_rules! each {
            ($x:ident, $y:ident => $e:expr) => {{
                let mut i = 0;
                while i < len {
                    s.prefetch(x.wrapping_add(i + AHEAD).cast());
                    s.prefetch(y.wrapping_add(i + AHEAD).cast());
                    let ($x, $y) = (s.load(x.add(i)), s.load(y.add(i)));
                    if past {
                        s.stream(z.add(i), $e);
                    } else {
                        s.store(z.add(i), $e);
                    }
                    i += S::LANES;
                }
            }};
        }
        match op.function {
            Function::Add => each!(x, y => s.add(x, y)),
            Function::Mul => each!(x, y => s.mul(x, y)),
            Function::AddScaled => each!(x, y => s.fma(alpha, y, x)),
            Function::SiluMul => each!(x, y => s.mul(math::silu(s, x), y)),
            Function::GeluTanhMul => each!(x, y => s.mul(math::gelu_tanh(s, x), y)),
            Function::GeluErfMul => each!(x, y => s.mul(math::gelu_erf(s, x), y)),
            Function::Silu => each!(x, _y => math::silu(s, x)),
            Function::GeluTanh => each!(x, _y => math::gelu_tanh(s, x)),
            Function::GeluErf => each!(x, _y => math::gelu_erf(s, x)),
            Function::Relu => each!(x, _y => s.max(s.zero(), x)),
            Function::Softplus => each!(x, _y => math::softplus(s, x)),
            Function::Sigmoid => each!(x, _y => math::sigmoid(s, x)),
            Function::Tanh => each!(x, _y => math::tanh(s, x)),
            Function::Softcap => each!(x, _y => s.mul(alpha, math::tanh(s, s.div(x, alpha)))),
            Function::Clamp => each!(x, _y => s.min(beta, s.max(alpha, x))),
            Function::Scale => each!(x, _y => s.fma(alpha, x, beta)),
            Function::Exp => each!(x, _y => math::exp(s, x)),
        }
        if !lies(&out) {
            row::write(s, out.dtype(), z, out.at(row, at), out.spec.stride(0), len);
        }
    }
}
