use super::kernel::{Kernel, activation};
use crate::{
    error::{Error, Result},
    op::{Conv, Features, Op},
};

pub(super) fn kernel(op: &Op, o: &Conv) -> Result<Kernel> {
    op.require(Features::all())?;
    if u32::try_from(o.out.numel()).is_err() {
        return Err(Error::unsupported(op, "more elements than the kernel counts"));
    }
    let mut kernel = Kernel::new(op, "conv", "conv");
    // Three dimensions of space, the missing ones of extent 1; then channels and batch.
    let space = o.space();
    for name in ["x", "w", "out"] {
        kernel.tensor_as(name, &|d| match d {
            0..3 if d < space => Some(d),
            3 | 4 => Some(space + d - 3),
            _ => None,
        });
    }
    kernel.tensor("bias");
    for s in [&o.x, &o.w, &o.out] {
        (0..3).for_each(|d| kernel.word(if d < space { s.dim(d) } else { 1 }));
    }
    let (cout, per_group) = (o.w.shape()[0], o.w.shape()[1]);
    let pad = |d: usize| if d < space { o.pad } else { 0 };
    for value in
        [cout, per_group, (cout / o.groups).max(1), o.out.numel(), o.stride, o.dilation, pad(0), pad(1), pad(2)]
    {
        kernel.word(value);
    }
    kernel.pair(activation(o.act), 0);
    kernel.blocks = o.out.numel().div_ceil(256);
    Ok(kernel)
}
