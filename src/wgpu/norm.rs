use super::{Kernel, require_dtypes};
use crate::{
    error::Result,
    op::{Features, Norm, Op, norm::NormKind},
};

pub(super) fn kernel(op: &Op, o: &Norm) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let mut kernel = Kernel::new(op, "norm", &o.x.shape()[..o.x.rank() - 1], 1);
    kernel.flag("layer", o.kind == NormKind::Layer);
    kernel.flag("reduce", true);
    kernel.whole("n", o.x.dim(0));
    kernel.real("eps", o.eps.get());
    kernel.real("factor", o.factor.get());
    kernel.groups = o.x.rows();
    kernel.collapse();
    Ok(kernel)
}
