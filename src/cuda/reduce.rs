use super::kernel::{Kernel, in_pieces};
use crate::{
    error::Result,
    layout::Spec,
    op::{Features, Op, Reduce, reduce::Reduction},
};

pub(super) fn kernel(op: &Op, o: &Reduce) -> Result<Kernel> {
    op.require(Features::all())?;
    let mut kernel = Kernel::new(op, "reduce", "reduce");
    for name in ["x", "out", "mask"] {
        kernel.tensor(name);
    }
    kernel.extents(o.x.shape(), 1, 6);
    kernel.word(o.x.dim(0));
    let rows = if o.kind == Reduction::L2Normalize { &[&o.x, &o.out][..] } else { &[&o.x] };
    let dense = |s: &&Spec| in_pieces(s, 4) && s.dtype().is_float();
    kernel.word(usize::from(o.x.dim(0).is_multiple_of(4) && rows.iter().all(dense)));
    // The order of `Kind` in kernels/reduce.cu.
    let kind = match o.kind {
        Reduction::Sum => 0,
        Reduction::Mean => 1,
        Reduction::Max => 2,
        Reduction::ArgMax => 3,
        Reduction::LogSumExp => 4,
        Reduction::L2Normalize => 5,
    };
    kernel.pair(kind, o.eps.get().to_bits());
    kernel.blocks = if o.out.numel() == 0 { 0 } else { o.x.rows() };
    Ok(kernel)
}
