use super::kernel::Kernel;
use crate::{
    error::Result,
    op::{Features, Op, Softmax},
};

pub(super) fn kernel(op: &Op, o: &Softmax) -> Result<Kernel> {
    op.require(Features::all())?;
    let mut kernel = Kernel::new(op, "softmax", "softmax");
    for name in ["x", "out", "mask"] {
        kernel.tensor(name);
    }
    kernel.extents(o.x.shape(), 1, 6);
    kernel.word(o.x.dim(0));
    kernel.word(usize::from(kernel.fours(o.x.dim(0))));
    kernel.pair(o.scale.get().to_bits(), u32::from(o.log));
    kernel.blocks = if o.x.dim(0) == 0 { 0 } else { o.x.rows() };
    Ok(kernel)
}
