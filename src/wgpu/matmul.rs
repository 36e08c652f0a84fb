use super::{Kernel, require_dtypes};
use crate::{
    dtype::DType,
    error::{Error, Result},
    op::{Activation, Determinism, Features, Matmul, Op},
};

/// Up to this many rows each output is summed by a workgroup of its own; beyond, tiles of 64 x 64 share their operands.
const GEMV_ROWS: usize = 4;

pub(super) fn kernel(op: &Op, o: &Matmul) -> Result<Kernel> {
    op.require(Features::all() - Features::SCALES)?;
    require_dtypes(op)?;
    if matches!(o.x.dtype(), DType::I8 | DType::U8) || o.w.dtype() == DType::I8 {
        return Err(Error::unsupported(op, "no shader multiplies 8-bit integers yet"));
    }
    let (batch, m, n, k) = o.dims();
    let mut kernel = Kernel::new(op, "matmul", &o.out.shape()[..o.out.rank() - 2], 2);
    // The same kernel for every number of rows, where a row's bits may not depend on its company.
    let gemv = m <= GEMV_ROWS && op.determinism() < Determinism::BatchInvariant;
    kernel.variant = if gemv { "gemv" } else { "tiled" };
    kernel.flag("gemv", gemv);
    kernel.flag("tiled", !gemv);
    kernel.flag("reduce", gemv);
    kernel.code(format!("fn activate(x: f32) -> f32 {{ return {}; }}", activation(o.act)));
    for (name, value) in [("m", m), ("n", n), ("k", k), ("tiles_m", m.div_ceil(64)), ("tiles_n", n.div_ceil(64))] {
        kernel.whole(name, value);
    }
    kernel.real("scale", o.scale.get());
    kernel.groups = if gemv { batch * m * n } else { batch * m.div_ceil(64) * n.div_ceil(64) };
    kernel.collapse();
    Ok(kernel)
}

/// The WGSL expression of an activation of `x`.
fn activation(act: Activation) -> &'static str {
    match act {
        Activation::None => "x",
        Activation::Silu => "silu(x)",
        Activation::GeluTanh => "gelu_tanh(x)",
        Activation::GeluErf => "gelu_erf(x)",
        Activation::Relu => "relu(x)",
    }
}
