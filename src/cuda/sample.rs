use super::{kernel::Kernel, top_k};
use crate::{
    error::Result,
    op::{Features, Op, Sample},
};

/// As in kernels/sample.cu.
const BUCKETS: usize = 2048;

pub(super) fn kernels(op: &Op, o: &Sample, processors: usize) -> Result<Vec<Kernel>> {
    op.require(Features::all())?;
    let (rows, n) = o.dims();
    let start = |entry| {
        let mut kernel = Kernel::new(op, "sample", entry);
        kernel.tensor("logits");
        kernel.tensor("seed");
        kernel.tensor("out");
        kernel
    };
    let rest = |kernel: &mut Kernel| {
        kernel.scratch_address();
        [rows, o.top_k].into_iter().for_each(|v| kernel.word(v));
        // The largest logit's weight: `n` of them fit 62 bits, and one an f32's exact powers of two.
        let bits = 62 - n.max(1).next_power_of_two().ilog2().min(31);
        kernel.pair(o.temperature.get().to_bits(), 2f32.powi(bits.min(52) as i32).to_bits());
        kernel.pair(o.top_p.get().to_bits(), 0);
    };
    let kept = if o.temperature.is_zero() { 1 } else { o.top_k };
    if kept > 0 && kept.min(n) <= top_k::MOST {
        return Ok(top_k::narrowed([rows, n, kept.min(n).max(1)], processors, || start("sample"), rest));
    }
    // Blocks of 1024 elements, more of them where there are enough blocks.
    let chunk = n.div_ceil((4 * processors).div_ceil(rows.max(1))).next_multiple_of(1024).max(1024);
    let parts = n.div_ceil(chunk).max(1);
    let step = |(entry, blocks)| {
        let mut kernel = start(entry);
        kernel.scratch_address();
        [0, 0, n, 0, chunk, parts].into_iter().for_each(|v| kernel.word(v));
        kernel.pair(1, 1);
        rest(&mut kernel);
        kernel.scratch = rows.saturating_mul((2 * (BUCKETS + parts) + n) * 8);
        kernel.blocks = blocks;
        kernel
    };
    let all = rows * parts;
    let steps = [("sample_ends", all), ("sample_buckets", all), ("sample_places", all), ("sample_draw", rows)];
    Ok(steps.map(step).into())
}
