use super::{Kernel, require_dtypes};
use crate::{
    error::{Error, Result},
    op::{Features, Op, TopK},
};

pub(super) fn kernel(op: &Op, o: &TopK) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    if !o.x.dtype().is_float() || !o.values.dtype().is_float() {
        return Err(Error::unsupported(op, "no shader sorts integers yet"));
    }
    let mut kernel = Kernel::new(op, "top_k", &o.x.shape()[..o.x.rank() - 1], 1);
    kernel.flag("pick", true);
    kernel.flag("softmax", o.softmax);
    kernel.whole("n", o.x.dim(0));
    kernel.whole("k", o.values.dim(0));
    kernel.groups = o.x.rows();
    kernel.collapse();
    Ok(kernel)
}
