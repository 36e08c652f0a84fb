use super::{Kernel, activation, require_dtypes};
use crate::{
    error::Result,
    op::{Conv1d, Features, Op},
};

pub(super) fn kernel(op: &Op, o: &Conv1d) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let (batch, t, channels, taps) = o.dims();
    let mut kernel = Kernel::new(op, "conv1d", &[], 3);
    kernel.code(activation(o.act));
    kernel.constant("TAPS", taps);
    for (name, value) in [("t", t), ("channels", channels)] {
        kernel.whole(name, value);
    }
    kernel.elements(if t == 0 { 0 } else { batch * channels });
    Ok(kernel)
}
