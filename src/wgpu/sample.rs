use super::{Kernel, require_dtypes};
use crate::{
    error::{Error, Result},
    op::{Features, Op, Sample},
};

pub(super) fn kernel(op: &Op, o: &Sample) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    if !o.temperature.is_zero() {
        return Err(Error::unsupported(op, "no shader draws at random yet: temperature=0.0 only"));
    }
    let (rows, n) = o.dims();
    let mut kernel = Kernel::new(op, "sample", &[rows], 1);
    kernel.variant = "greedy";
    kernel.strides("seed", &[0], &[]);
    kernel.strides("out", &[if rows > 1 { o.out.stride(0) } else { 0 }], &[]);
    kernel.flag("pick", true);
    kernel.whole("n", n);
    kernel.groups = rows;
    Ok(kernel)
}
