use super::kernel::Kernel;
use crate::{
    error::{Error, Result},
    op::{Attention, Features, Op},
};

/// The longest head a block holds.
const MOST: usize = 256;

pub(super) fn kernel(op: &Op, o: &Attention) -> Result<Kernel> {
    op.require(Features::all())?;
    let sizes = o.sizes();
    if sizes.d.max(sizes.dv) > MOST {
        return Err(Error::unsupported(op, format_args!("heads of {} are longer than {MOST}", sizes.d.max(sizes.dv))));
    }
    let mut kernel = Kernel::new(op, "attention", "attention");
    for name in ["q", "k", "v", "out", "mask", "alibi", "sinks", "lse"] {
        kernel.tensor(name)?;
    }
    for name in ["q_len", "kv_len", "q_offsets", "kv_offsets", "block_table", "key_mask"] {
        kernel.indices(name);
    }
    let group = sizes.heads / sizes.kv_heads.max(1);
    let (q_rows, window) = (sizes.q_len, o.window.min(1 << 40));
    for value in [q_rows, sizes.heads, group, sizes.batch, sizes.capacity, sizes.d, sizes.dv] {
        kernel.word(value);
    }
    [o.k.dim(2).max(1), o.k.dim(3), window].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(u32::from(o.causal), o.score_scale().to_bits());
    kernel.pair(o.softcap.get().to_bits(), 0);
    kernel.threads = 128;
    let sequences = if o.q_offsets.is_some() { 1 } else { sizes.batch };
    kernel.blocks = if sizes.dv == 0 && o.lse.is_none() { 0 } else { sequences * q_rows * sizes.heads };
    Ok(kernel)
}
