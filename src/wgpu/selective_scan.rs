use super::{Kernel, require_dtypes, ssm_scan::MAX_N};
use crate::{
    error::{Error, Result},
    layout::Spec,
    op::{Features, Op, SelectiveScan},
};

/// The scan of Mamba-2 with a head per channel, one row wide, a decay per state, and all channels in one group.
pub(super) fn kernel(op: &Op, o: &SelectiveScan) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let (batch, t, channels, n) = o.dims();
    if n > MAX_N {
        return Err(Error::unsupported(op, format_args!("{n} states are more than {MAX_N}")));
    }
    let mut kernel = Kernel::new(op, "scan", &[], 4);
    kernel.variant = "selective_scan";
    let rows = |s: &Spec| [0, s.stride(0), s.stride(1), s.stride(2)];
    let states = |s: &Spec| [s.stride(0), 0, s.stride(1), s.stride(2)];
    for (name, s) in [("x", Some(o.x)), ("out", Some(o.out)), ("z", o.z)] {
        s.into_iter().for_each(|s| kernel.strides(name, &[], &rows(&s)));
    }
    kernel.strides("dt", &[], &[o.dt.stride(0), o.dt.stride(1), o.dt.stride(2), 0]);
    for (name, s) in [("b", Some(o.b)), ("c", Some(o.c)), ("state", o.state)] {
        s.into_iter().for_each(|s| kernel.strides(name, &[], &states(&s)));
    }
    kernel.strides("a", &[], &[o.a.stride(1), o.a.stride(0), 0, 0]);
    kernel.flag("per_state", true);
    kernel.flag("softplus", o.softplus);
    for (name, value) in [("t", t), ("heads", channels), ("width", 1), ("n", n), ("share", channels.max(1))] {
        kernel.whole(name, value);
    }
    kernel.groups = if t == 0 { 0 } else { batch * channels };
    Ok(kernel)
}
