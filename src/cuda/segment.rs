use super::{
    kernel::Kernel,
    scatter::{lists, room, width},
};
use crate::{
    error::Result,
    op::{Features, Op, Segment, segment::SegmentKind},
};

pub(super) fn kernels(op: &Op, o: &Segment) -> Result<Vec<Kernel>> {
    op.require(Features::all())?;
    let (rows, d, count) = o.dims();
    let softmax = o.kind == SegmentKind::Softmax;
    let width = width(d, count);
    let kernel = |entry, blocks| {
        let mut kernel = Kernel::new(op, "segment", entry);
        for name in ["x", "segments", "out"] {
            kernel.tensor(name);
        }
        lists(&mut kernel, rows, count);
        [d, d.div_ceil(width)].into_iter().for_each(|v| kernel.word(v));
        kernel.pair(width as u32, u32::from(softmax));
        kernel.blocks = if d == 0 || softmax && rows == 0 { 0 } else { blocks };
        kernel
    };
    let mut steps = vec![kernel(if softmax { "segment_softmax" } else { "segment_sum" }, count * d.div_ceil(width))];
    if softmax || room(rows, count) > 0 {
        steps.insert(0, kernel("segment_lists", rows.div_ceil(256)));
    }
    if room(rows, count) > 0 {
        steps.insert(0, kernel("segment_clear", count.div_ceil(256)));
    }
    Ok(steps)
}
