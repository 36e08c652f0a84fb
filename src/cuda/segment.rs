use super::kernel::Kernel;
use crate::{
    error::Result,
    op::{Features, Op, Segment, segment::SegmentKind},
};

pub(super) fn kernel(op: &Op, o: &Segment) -> Result<Kernel> {
    op.require(Features::all())?;
    let (rows, d, count) = o.dims();
    let sum = o.kind == SegmentKind::Sum;
    let mut kernel = Kernel::new(op, "segment", if sum { "segment_sum" } else { "segment_softmax" });
    kernel.tensor("x");
    kernel.tensor("segments");
    kernel.tensor("out");
    let parts = d.div_ceil(256);
    [rows, d, count, parts].into_iter().for_each(|v| kernel.word(v));
    kernel.blocks = if sum { count } else { rows } * parts;
    Ok(kernel)
}
