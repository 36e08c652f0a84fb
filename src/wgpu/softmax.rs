use super::{Kernel, require_dtypes};
use crate::{
    error::Result,
    op::{Features, Op, Softmax},
};

pub(super) fn kernel(op: &Op, o: &Softmax) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let mut kernel = Kernel::new(op, "softmax", &o.x.shape()[..o.x.rank() - 1], 1);
    kernel.flag("reduce", true);
    kernel.flag("log", o.log);
    kernel.whole("n", o.x.dim(0));
    kernel.real("scale", o.scale.get());
    kernel.groups = o.x.rows();
    kernel.collapse();
    Ok(kernel)
}
