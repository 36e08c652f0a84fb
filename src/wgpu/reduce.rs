use super::{Kernel, require_dtypes};
use crate::{
    error::{Error, Result},
    op::{Features, Op, Reduce, reduce::Reduction},
};

pub(super) fn kernel(op: &Op, o: &Reduce) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    if !o.x.dtype().is_float() {
        return Err(Error::unsupported(op, "no shader reduces integers yet"));
    }
    let mut kernel = Kernel::new(op, "reduce", &o.x.shape()[..o.x.rank() - 1], 1);
    kernel.variant = o.kind.name();
    let (flags, pick): (&[&'static str], bool) = match o.kind {
        Reduction::Sum => (&["sum"], false),
        Reduction::Mean => (&["sum", "mean"], false),
        Reduction::Max => (&[], true),
        Reduction::ArgMax => (&["arg_max"], true),
        Reduction::LogSumExp => (&["log_sum_exp"], false),
        Reduction::L2Normalize => (&["l2_normalize"], false),
    };
    flags.iter().for_each(|f| kernel.flag(f, true));
    kernel.flag("pick", pick);
    kernel.flag("reduce", !pick);
    kernel.whole("n", o.x.dim(0));
    kernel.real("eps", o.eps.get());
    kernel.groups = o.x.rows();
    kernel.collapse();
    Ok(kernel)
}
