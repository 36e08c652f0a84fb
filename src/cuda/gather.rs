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
    let fours = o.out.dim(0).div_ceil(4) * o.out.dim(1);
    [o.table.dim(1), o.out.dim(0), fours].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(o.scale.get().to_bits(), 0);
    kernel.blocks = fours.div_ceil(1024);
    Ok(kernel)
}
