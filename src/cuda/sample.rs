use super::kernel::Kernel;
use crate::{
    error::Result,
    op::{Features, Op, Sample},
};

pub(super) fn kernel(op: &Op, o: &Sample) -> Result<Kernel> {
    op.require(Features::all())?;
    let (rows, n) = o.dims();
    let mut kernel = Kernel::new(op, "sample", "sample");
    kernel.tensor("logits");
    kernel.tensor("seed");
    kernel.tensor("out");
    [n, o.top_k].into_iter().for_each(|v| kernel.word(v));
    // The largest logit's weight: `n` of them fit 62 bits, and one an f32's exact powers of two.
    let bits = 62 - n.max(1).next_power_of_two().ilog2().min(31);
    kernel.pair(o.temperature.get().to_bits(), 2f32.powi(bits.min(52) as i32).to_bits());
    kernel.pair(o.top_p.get().to_bits(), 0);
    kernel.blocks = rows;
    Ok(kernel)
}
