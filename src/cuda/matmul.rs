use super::kernel::{Kernel, activation};
use crate::{
    error::Result,
    op::{Determinism, Features, Matmul, Op},
};

/// Up to this many rows each output is summed by a warp of its own; beyond, tiles of 64 x 64 share their operands.
const GEMV_ROWS: usize = 4;

pub(super) fn kernel(op: &Op, o: &Matmul) -> Result<Kernel> {
    let epilogue = Features::BIAS | Features::ACTIVATION | Features::GATED | Features::RESIDUAL | Features::SCALE;
    op.require(epilogue | Features::BATCH | Features::STRIDED | Features::BROADCAST | Features::DETERMINISM)?;
    let (batch, m, n, k) = o.dims();
    // The same kernel for every number of rows, where a row's bits may not depend on its company.
    let gemv = m <= GEMV_ROWS && op.determinism() < Determinism::BatchInvariant;
    let mut kernel = Kernel::new(op, "matmul", if gemv { "gemv" } else { "tiled" });
    for name in ["x", "w", "out", "up", "bias", "residual"] {
        kernel.tensor(name)?;
    }
    kernel.extents(o.out.shape(), 2, 2);
    [m, n, k, batch * m * n].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(activation(o.act), o.scale.get().to_bits());
    (kernel.threads, kernel.blocks) = match gemv {
        true => (128, (batch * m * n).div_ceil(4)),
        false => (256, batch * m.div_ceil(64) * n.div_ceil(64)),
    };
    Ok(kernel)
}
