use super::{Kernel, require_dtypes};
use crate::{
    error::{Error, Result},
    op::{Features, Op, SsmScan},
};

/// The most states a workgroup's registers hold.
pub(super) const MAX_N: usize = 256;

pub(super) fn kernel(op: &Op, o: &SsmScan) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let (batch, t, heads, p, groups, n) = o.dims();
    if n > MAX_N {
        return Err(Error::unsupported(op, format_args!("{n} states are more than {MAX_N}")));
    }
    let mut kernel = Kernel::new(op, "scan", &[], 4);
    kernel.variant = "ssm_scan";
    kernel.flag("softplus", o.softplus);
    for (name, value) in [("t", t), ("heads", heads), ("width", p), ("n", n), ("share", (heads / groups.max(1)).max(1))]
    {
        kernel.whole(name, value);
    }
    kernel.groups = if t == 0 { 0 } else { batch * heads * p };
    Ok(kernel)
}
