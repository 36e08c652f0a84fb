use super::kernel::Kernel;
use crate::{
    error::{Error, Result},
    op::{Features, LinearAttention, Op},
};

/// Features and elements of a head that a block holds.
const MOST: usize = 256;
/// Elements of a value that a block sums.
const ELEMENTS: usize = 16;

/// The same for tiles, and the rows of one, as in kernels/linear_attention.cu.
const FEATURES: usize = 32;
const TILE: usize = 64;

pub(super) fn kernel(op: &Op, o: &LinearAttention) -> Result<Kernel> {
    op.require(Features::all())?;
    let (batch, t, heads, d, features, dv) = o.dims();
    let tiled = features <= FEATURES;
    if features > MOST || d > MOST && !tiled {
        let why = format_args!("heads of {d} or {features} features are more than {MOST}");
        return Err(Error::unsupported(op, why));
    }
    let entry = if tiled { "linear_attention_tiles" } else { "linear_attention" };
    let mut kernel = Kernel::new(op, "linear_attention", entry);
    for name in ["q", "k", "v", "omega", "out"] {
        kernel.tensor(name);
    }
    kernel.tensor("lengths");
    let tiles = dv.div_ceil(if tiled { TILE } else { ELEMENTS });
    [t, heads, d, features, dv, tiles].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(u32::from(o.causal), o.eps.get().to_bits());
    kernel.blocks = batch * heads * tiles;
    if tiled {
        kernel.threads = 128;
        kernel.shared = ((2 * TILE + 3 * FEATURES) * (TILE + 4) + FEATURES + TILE) * 4;
    }
    Ok(kernel)
}
