use super::kernel::Kernel;
use crate::{
    error::Result,
    op::{Features, Op, TopK},
};

pub(super) fn kernel(op: &Op, o: &TopK) -> Result<Kernel> {
    op.require(Features::all())?;
    let (rows, n, k) = o.dims();
    let mut kernel = Kernel::new(op, "top_k", "top_k");
    kernel.tensor("x");
    kernel.tensor("values");
    kernel.tensor("indices");
    [n, k].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(u32::from(o.softmax), 0);
    kernel.blocks = if k == 0 { 0 } else { rows };
    Ok(kernel)
}
