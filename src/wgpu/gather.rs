use super::{Kernel, require_dtypes};
use crate::{
    error::Result,
    op::{Features, Gather, Op},
};

/// Of the rows from `first` on of a table of `all` rows.
pub(super) fn kernel(op: &Op, o: &Gather, first: usize, all: usize) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let mut kernel = Kernel::new(op, "gather", o.out.shape(), 0);
    kernel.strides("index", &[o.index.stride(0), 0], &[]);
    kernel.strides("table", &[], &[o.table.stride(0), o.table.stride(1)]);
    kernel.whole("rows", o.table.dim(1));
    kernel.whole("first", first);
    kernel.whole("all", all);
    kernel.whole("d", o.out.dim(0));
    kernel.real("scale", o.scale.get());
    kernel.elements(o.out.numel());
    Ok(kernel)
}
