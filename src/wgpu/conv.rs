use super::{Kernel, activation, require_dtypes};
use crate::{
    error::Result,
    layout::Spec,
    op::{Conv, Features, Op},
};

pub(super) fn kernel(op: &Op, o: &Conv) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let mut kernel = Kernel::new(op, "conv", &[], 0);
    // Three dimensions of space, the missing ones of extent 1; then channels and batch.
    let space = |s: &Spec, d: usize| if d < o.space() { s.dim(d) } else { 1 };
    let strides = |s: &Spec| -> Vec<usize> {
        let place = (0..3).map(|d| if d < o.space() { s.stride(d) } else { 0 });
        place.chain([s.stride(o.space()), s.stride(o.space() + 1)]).collect()
    };
    for (name, s) in [("x", &o.x), ("w", &o.w), ("out", &o.out)] {
        kernel.strides(name, &[], &strides(s));
    }
    if let Some(bias) = &o.bias {
        kernel.strides("bias", &[], &[bias.stride(0)]);
    }
    kernel.code(activation(o.act));
    for (name, s, d) in [
        ("x0", &o.x, 0),
        ("x1", &o.x, 1),
        ("x2", &o.x, 2),
        ("w0", &o.w, 0),
        ("w1", &o.w, 1),
        ("w2", &o.w, 2),
        ("out0", &o.out, 0),
        ("out1", &o.out, 1),
        ("out2", &o.out, 2),
    ] {
        kernel.whole(name, space(s, d));
    }
    let (cout, per_group) = (o.w.shape()[0], o.w.shape()[1]);
    for (name, value) in [
        ("cout", cout),
        ("per_group", per_group),
        ("group", (cout / o.groups).max(1)),
        ("stride", o.stride),
        ("pad", o.pad),
        ("pad1", if o.space() > 1 { o.pad } else { 0 }),
        ("pad2", if o.space() > 2 { o.pad } else { 0 }),
        ("dilation", o.dilation),
    ] {
        kernel.whole(name, value);
    }
    kernel.elements(o.out.numel());
    Ok(kernel)
}
