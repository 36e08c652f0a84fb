use super::{Kernel, kv_append, require_encoded};
use crate::{
    error::Result,
    op::{Features, Op, Rope, rope::RopeStyle},
};

pub(super) fn kernel(op: &Op, o: &Rope) -> Result<Kernel> {
    op.require(Features::all())?;
    let quantized = o.cache.filter(|c| c.dtype().is_quantized());
    require_encoded(op)?;
    let mut kernel = Kernel::new(op, "rope", &[], 3);
    let pairs = o.rotated() / 2;
    // With a cache, elements that are not rotated are copied, each by a thread of its own.
    let parts = if o.cache.is_some() { o.x.dim(0) - pairs } else { pairs };
    if let Some(cache) = &o.cache {
        kv_append::rows(&mut kernel, cache);
    }
    let (pair, other) = match o.style {
        RopeStyle::Adjacent => (2, 1),
        RopeStyle::Half => (1, pairs),
    };
    for (name, value) in [
        ("pairs", pairs),
        ("parts", parts),
        ("tokens", o.x.dim(2)),
        ("heads", o.x.dim(1)),
        ("step_pair", pair),
        ("step_other", other),
    ] {
        kernel.whole(name, value);
    }
    kernel.real("amplitude", o.amplitude() as f32);
    // Turns per position, modulo 1, in units of 2^-64: the high word, then the low one.
    kernel.table = (o.frequencies().into_iter())
        .flat_map(|f| {
            let turns = ((f / std::f64::consts::TAU).rem_euclid(1.0) * 2f64.powi(64)) as u64;
            [(turns >> 32) as u32, turns as u32]
        })
        .collect();
    kernel.table.resize((2 * pairs).max(2), 0); // the shader binds it even where nothing is rotated
    kernel.elements(o.x.dim(2) * o.x.dim(1) * parts);
    if let Some(cache) = quantized {
        // Blocks are encoded once all of their pairs are rotated.
        let mut then = kv_append::append(op, &o.x, &cache);
        then.flag("staged", true);
        kernel.flag("blocks", true);
        kernel.whole("d", o.x.dim(0));
        kernel.scratch = o.x.numel().max(1);
        then.scratch = kernel.scratch;
        kernel.then = Some(Box::new(then));
    }
    Ok(kernel)
}
