use super::{Kernel, require_dtypes};
use crate::{
    error::Result,
    op::{Features, Gather, Op},
};

pub(super) fn kernel(op: &Op, o: &Gather) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let mut kernel = Kernel::new(op, "gather", o.out.shape(), 0);
    kernel.strides("index", &[o.index.stride(0), 0], &[]);
    kernel.strides("table", &[], &[o.table.stride(0), o.table.stride(1)]);
    kernel.whole("rows", o.table.dim(1));
    kernel.whole("d", o.out.dim(0));
    kernel.real("scale", o.scale.get());
    kernel.elements(o.out.numel());
    Ok(kernel)
}
