use super::{Kernel, require_dtypes};
use crate::{
    error::{Error, Result},
    op::{Features, LinearAttention, Op},
};

/// Features and elements of a head that a workgroup holds.
const MOST: usize = 256;
/// Elements of a value that one workgroup sums.
const ELEMENTS: usize = 16;

pub(super) fn kernel(op: &Op, o: &LinearAttention) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let (batch, t, heads, d, features, dv) = o.dims();
    if features > MOST || d > MOST {
        let why = format_args!("heads of {d} or {features} features are more than {MOST}");
        return Err(Error::unsupported(op, why));
    }
    let mut kernel = Kernel::new(op, "linear_attention", &[], 4);
    kernel.flag("causal", o.causal);
    kernel.constant("ELEMENTS", ELEMENTS);
    let tiles = dv.div_ceil(ELEMENTS);
    for (name, value) in [("t", t), ("heads", heads), ("d", d), ("features", features), ("dv", dv), ("tiles", tiles)] {
        kernel.whole(name, value);
    }
    kernel.real("eps", o.eps.get());
    kernel.groups = batch * heads * tiles;
    Ok(kernel)
}
