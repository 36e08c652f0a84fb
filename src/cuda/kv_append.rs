use super::kernel::Kernel;
use crate::{
    error::Result,
    layout::Spec,
    op::{Features, KvAppend, Op},
};

/// Elements of a row that a block writes.
const PART: usize = 2048;

pub(super) fn kernel(op: &Op, o: &KvAppend) -> Result<Kernel> {
    op.require(Features::all())?;
    let mut kernel = Kernel::new(op, "kv_append", "kv_append");
    cache(&mut kernel, Some(&o.cache), o.x.dim(2));
    kernel.tensor("x");
    let width = o.x.dim(1) * o.x.dim(0);
    let parts = width.div_ceil(PART);
    [width, o.x.dim(0), parts].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(o.cache.dtype().block().1 as u32, 0);
    kernel.blocks = o.x.dim(2) * parts;
    Ok(kernel)
}

/// `CacheArgs` of kernels/common/cache.cuh. A contiguous cache is one page that holds all its rows.
pub(super) fn cache(kernel: &mut Kernel, cache: Option<&Spec>, tokens: usize) {
    kernel.tensor("cache");
    kernel.tensor("slots");
    let (pages, page) = cache.map_or((0, 1), |c| (c.dim(3), c.dim(2)));
    [tokens, pages * page, page.max(1)].into_iter().for_each(|v| kernel.word(v));
}
