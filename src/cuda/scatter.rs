use super::kernel::Kernel;
use crate::{
    error::Result,
    op::{Features, Op, Scatter},
};

pub(super) fn kernel(op: &Op, o: &Scatter) -> Result<Kernel> {
    op.require(Features::all())?;
    let mut kernel = Kernel::new(op, "scatter", "scatter");
    kernel.tensor("x");
    kernel.tensor("index");
    kernel.tensor("out");
    kernel.tensor("weight");
    [o.x.dim(1), o.out.dim(0), o.out.numel()].into_iter().for_each(|v| kernel.word(v));
    kernel.blocks = if o.x.dim(1) == 0 { 0 } else { o.out.numel().div_ceil(256) };
    Ok(kernel)
}
