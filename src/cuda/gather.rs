use super::kernel::Kernel;
use crate::{
    error::Result,
    op::{Features, Gather, Op},
};

pub(super) fn kernel(op: &Op, o: &Gather) -> Result<Kernel> {
    op.require(Features::all())?;
    let mut kernel = Kernel::new(op, "gather", "gather");
    kernel.tensor("table");
    kernel.tensor("index");
    kernel.tensor("out");
    [o.table.dim(1), o.out.dim(0), o.out.numel()].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(o.scale.get().to_bits(), 0);
    kernel.blocks = o.out.numel().div_ceil(256);
    Ok(kernel)
}
