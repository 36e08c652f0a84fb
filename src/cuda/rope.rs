use super::{
    kernel::{Kernel, in_pieces},
    kv_append,
};
use crate::{
    error::{Error, Result},
    op::{Features, Op, Rope, rope::RopeStyle},
};

/// Pairs that a block turns.
const PART: usize = 1024;
/// Tokens that are blocks enough.
const MANY: usize = 256;
/// Elements of a head that a block holds on their way into a quantized cache.
const MOST: usize = 1024;

pub(super) fn kernel(op: &Op, o: &Rope) -> Result<Kernel> {
    op.require(Features::all())?;
    let (tokens, heads, d, pairs) = (o.x.dim(2), o.x.dim(1), o.x.dim(0), o.rotated() / 2);
    let quantized = o.cache.filter(|c| c.dtype().is_quantized());
    if quantized.is_some() && d > MOST {
        return Err(Error::unsupported(op, format_args!("heads of {d} are longer than {MOST}")));
    }
    // A thread has four neighbouring pairs of several heads.
    let fours = o.cache.is_none() && in_pieces(&o.x, 4) && pairs > 0 && pairs.is_multiple_of(4) && pairs <= 4 * 256;
    let entry = if quantized.is_some() {
        "rope_blocks"
    } else if fours {
        "rope_fours"
    } else {
        "rope"
    };
    let mut kernel = Kernel::new(op, "rope", entry);
    kv_append::cache(&mut kernel, o.cache.as_ref(), tokens);
    kernel.tensor("x");
    kernel.tensor("positions");
    kernel.tensor("factors");
    // Turns per position, modulo 1, in units of 2^-64.
    let turns = |f: f64| ((f / std::f64::consts::TAU).rem_euclid(1.0) * 2f64.powi(64)) as u64;
    kernel.table(o.frequencies().into_iter().map(turns).collect());
    // With a cache, elements that are not turned are copied, each by a thread of its own.
    let (parts, blocks) = if fours {
        // Heads of a block: more than one of a thread where there are many blocks.
        let parts = 256 / (pairs / 4) * if tokens < MANY { 1 } else { 2 };
        (parts, heads.div_ceil(parts))
    } else {
        let parts = if o.cache.is_some() { d - pairs } else { pairs };
        (parts, (heads * parts).div_ceil(PART))
    };
    let (pair, other) = match o.style {
        RopeStyle::Adjacent => (2, 1),
        RopeStyle::Half => (1, pairs),
    };
    [heads, pairs, parts, blocks, pair, other].into_iter().for_each(|v| kernel.word(v));
    let bytes = quantized.map_or(0, |c| c.dtype().block().1);
    kernel.pair((o.amplitude() as f32).to_bits(), bytes as u32);
    kernel.blocks = tokens
        * if quantized.is_none() {
            blocks
        } else if parts == 0 {
            0
        } else {
            heads
        };
    Ok(kernel)
}
