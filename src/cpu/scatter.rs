//! Adding rows by index. Tasks share the rows of the output among themselves: each is read once, gets its terms in order in f32, and
//! is rounded once.

use std::sync::Arc;

use super::{
    Device,
    chain::Chains,
    kernel::{Args, Kernel, Tensor},
    pool::Pool,
    reduce::{STRETCH, numbers},
    simd::{Isa, Simd, row, simd},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Features, Scatter},
};

/// Elements of the output that a task covers at most.
pub(super) const TASK: usize = 1 << 13;

pub(super) fn plan(device: &Arc<Device>, op: &Scatter) -> Result<Plans> {
    let known = Features::STRIDED | Features::SCALES;
    let kernel = Kernel::new(device, *op, format_args!("scatter-{}", op.out.dtype()), known)?;
    let (n, rows) = (op.x.dim(1), op.out.dim(1));
    kernel.scratch(Chains::scratch(n, rows)).plan(move |args: &Args, pool: &mut Pool| {
        // SAFETY: the scratch memory was asked for.
        let chains = unsafe { Chains::build(args.of("index"), rows, args.scratch()) };
        let sums = Sums { x: args.of("x"), weight: args.get("weight"), out: args.of("out"), keep: true };
        sums.run(args.isa, &chains, pool);
    })
}

/// `out[t] = (out[t] or 0) + sum weight[i] x[i]` over the rows `i` that name `t`.
pub(super) struct Sums<'a> {
    pub(super) x: Tensor<'a>,
    /// f32, one for each row of `x`.
    pub(super) weight: Option<Tensor<'a>>,
    pub(super) out: Tensor<'a>,
    /// Adds to what is there; rows that nobody names keep their bytes.
    pub(super) keep: bool,
}

impl Sums<'_> {
    pub(super) fn run(&self, isa: Isa, chains: &Chains, pool: &mut Pool) {
        let (rows, d) = (self.out.rows(), self.out.spec.dim(0));
        let parts = d.div_ceil(STRETCH);
        let rows_per_task = TASK / d.clamp(1, STRETCH);
        pool.run(rows.div_ceil(rows_per_task) * parts, |task, _| {
            let (first, at) = (task / parts * rows_per_task, task % parts * STRETCH);
            for target in first..(first + rows_per_task).min(rows) {
                // SAFETY: the columns exist and are this task's alone.
                simd!(isa, s => unsafe { self.row(s, chains, target, at, STRETCH.min(d - at)) });
            }
        });
    }

    /// # Safety
    /// `out` has the columns `at .. at + n` of row `target`, at most [`STRETCH`], and nobody else uses them.
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, chains: &Chains, target: usize, at: usize, n: usize) {
        let mut members = chains.of(target).peekable();
        if self.keep && members.peek().is_none() {
            return;
        }
        let (mut sum, mut buffer) = ([0f32; STRETCH], [0f32; STRETCH]);
        let (to, stride) = (self.out.at(target, at), self.out.spec.stride(0));
        // SAFETY: the caller's promise; rows of x are as long as rows of out, buffers hold whole vectors.
        unsafe {
            if self.keep {
                row::read(s, self.out.dtype(), to, stride, sum.as_mut_ptr(), n);
            }
            for i in members {
                let from = numbers(s, &self.x, (i, at, n), &mut buffer);
                let weight = s.splat(self.weight.map_or(1.0, |w| *w.at::<f32>(0, i)));
                for j in (0..n).step_by(S::LANES) {
                    let v = if j + S::LANES <= n { s.load(from.add(j)) } else { s.load_partial(from.add(j), n - j) };
                    s.store(sum.as_mut_ptr().add(j), s.fma(weight, v, s.load(sum.as_ptr().add(j))));
                }
            }
            row::write(s, self.out.dtype(), sum.as_ptr(), to, stride, n);
        }
    }
}
