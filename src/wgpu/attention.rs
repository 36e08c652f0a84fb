use super::{Kernel, require_dtypes};
use crate::{
    error::{Error, Result},
    op::{Attention, Features, Op},
};

/// The longest head a workgroup holds.
const MAX_D: usize = 256;

pub(super) fn kernel(op: &Op, o: &Attention) -> Result<Kernel> {
    op.require(Features::all() - Features::VARLEN - Features::PAGED)?;
    require_dtypes(op)?;
    let (d, dv) = (o.q.dim(0), o.v.dim(0));
    if d > MAX_D || dv > MAX_D {
        return Err(Error::unsupported(op, format_args!("heads of {} are longer than {MAX_D}", d.max(dv))));
    }
    let (batch, q_rows, heads, kv_heads) = (o.q.dim(3), o.q.dim(2), o.q.dim(1), o.k.dim(1));
    let mut kernel = Kernel::new(op, "attention", &[], 4);
    kernel.flag("reduce", true);
    kernel.flag("causal", o.causal);
    kernel.flag("window", o.window > 0);
    kernel.flag("softcap", !o.softcap.is_zero());
    for (name, value) in [
        ("q_rows", q_rows),
        ("heads", heads),
        ("group", heads / kv_heads.max(1)),
        ("capacity", o.k.dim(2)),
        ("d", d),
        ("dv", dv),
        ("window", o.window.min(1 << 30)),
    ] {
        kernel.whole(name, value);
    }
    let default = 1.0 / (d as f64).sqrt();
    kernel.real("scale", if o.scale.is_zero() { default as f32 } else { o.scale.get() });
    kernel.real("softcap", o.softcap.get());
    kernel.groups = if dv == 0 && o.lse.is_none() { 0 } else { batch * heads * q_rows };
    Ok(kernel)
}
