use super::{Kernel, require_dtypes};
use crate::{
    error::Result,
    op::{Features, Op, Scatter},
};

pub(super) fn kernel(op: &Op, o: &Scatter) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let (n, d, rows) = (o.x.dim(1), o.x.dim(0), o.out.dim(1));
    let mut kernel = Kernel::new(op, "scatter", &[], 2);
    for (name, value) in [("n", n), ("d", d), ("rows", rows), ("tiles", d.div_ceil(64))] {
        kernel.whole(name, value);
    }
    kernel.groups = n * d.div_ceil(64);
    Ok(kernel)
}
