use super::kernel::Kernel;
use crate::{
    error::{Error, Result},
    op::{Features, Norm, Op, norm::NormKind},
};

pub(super) fn kernel(op: &Op, o: &Norm) -> Result<Kernel> {
    let known = Features::BIAS | Features::RESIDUAL | Features::SCALE | Features::GATE | Features::SUM;
    op.require(known | Features::STRIDED | Features::BROADCAST | Features::DETERMINISM)?;
    if o.out.dtype().is_quantized() {
        return Err(Error::unsupported(op, format_args!("this kernel makes no blocks of {}", o.out.dtype())));
    }
    let mut kernel = Kernel::new(op, "norm", "norm");
    for name in ["x", "out", "weight", "bias", "residual", "gate", "sum"] {
        kernel.tensor(name);
    }
    kernel.extents(o.x.shape(), 1, 6);
    kernel.word(o.x.dim(0));
    kernel.word(usize::from(kernel.fours(o.x.dim(0))));
    kernel.pair(u32::from(o.kind == NormKind::Layer), o.eps.get().to_bits());
    kernel.pair(o.factor.get().to_bits(), 0);
    kernel.blocks = o.x.rows();
    Ok(kernel)
}
