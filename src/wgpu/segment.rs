use super::{Kernel, require_dtypes};
use crate::{
    error::Result,
    op::{Features, Op, Segment, segment::SegmentKind},
};

pub(super) fn kernel(op: &Op, o: &Segment) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let (rows, d, count) = o.dims();
    let mut kernel = Kernel::new(op, "segment", &[], 2);
    kernel.variant = o.kind.name();
    let sum = o.kind == SegmentKind::Sum;
    kernel.flag("sum", sum);
    for (name, value) in [("rows", rows), ("d", d), ("count", count), ("tiles", d.div_ceil(64))] {
        kernel.whole(name, value);
    }
    kernel.groups = if sum { count } else { rows } * d.div_ceil(64);
    Ok(kernel)
}
