use super::{Kernel, require_dtypes};
use crate::{
    error::Result,
    op::{Features, KvAppend, Op},
};

pub(super) fn kernel(op: &Op, o: &KvAppend) -> Result<Kernel> {
    op.require(Features::STRIDED | Features::PAGED | Features::BROADCAST | Features::DETERMINISM)?;
    require_dtypes(op)?;
    let mut kernel = Kernel::new(op, "kv_append", &[], 3);
    // A contiguous cache is one page that holds all its rows.
    let rows = o.cache.dim(2);
    let pages = o.cache.dim(3);
    kernel.flag("reduce", true);
    for (name, value) in [
        ("heads", o.x.dim(1)),
        ("d", o.x.dim(0)),
        ("page", rows.max(1)),
        ("capacity", pages * rows),
        ("page_stride", if pages > 1 { o.cache.stride(3) } else { 0 }),
        ("row_stride", if rows > 1 { o.cache.stride(2) } else { 0 }),
    ] {
        kernel.whole(name, value);
    }
    kernel.groups = o.x.dim(2);
    Ok(kernel)
}
