use super::{Kernel, require_encoded};
use crate::{
    error::Result,
    layout::Spec,
    op::{Features, KvAppend, Op},
};

pub(super) fn kernel(op: &Op, o: &KvAppend) -> Result<Kernel> {
    op.require(Features::STRIDED | Features::PAGED | Features::BROADCAST | Features::DETERMINISM)?;
    require_encoded(op)?;
    Ok(append(op, &o.x, &o.cache))
}

/// Rows of `x` into `cache`, operands of `op`.
pub(super) fn append(op: &Op, x: &Spec, cache: &Spec) -> Kernel {
    let (elements, bytes) = cache.dtype().block();
    let mut kernel = Kernel::new(op, "kv_append", &[], 3);
    kernel.flag("reduce", true);
    kernel.flag("blocks", elements > 1);
    kernel.constant("BYTES", bytes);
    kernel.whole("heads", x.dim(1));
    kernel.whole("d", x.dim(0));
    rows(&mut kernel, cache);
    kernel.groups = x.dim(2);
    kernel
}

/// The parameters of `cache_row`. A contiguous cache is one page that holds all its rows.
pub(super) fn rows(kernel: &mut Kernel, cache: &Spec) {
    let (pages, page) = (cache.dim(3), cache.dim(2));
    kernel.whole("capacity", pages * page);
    kernel.whole("page", page.max(1));
    kernel.whole("page_stride", if pages > 1 { cache.stride(3) } else { 0 });
    kernel.whole("row_stride", if page > 1 { cache.stride(2) } else { 0 });
}
