use super::{Kernel, require_dtypes};
use crate::{
    error::Result,
    op::{Features, Op, Sample},
};

pub(super) fn kernel(op: &Op, o: &Sample) -> Result<Kernel> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let (rows, n) = o.dims();
    let mut kernel = Kernel::new(op, "sample", &[rows], 1);
    let draws = !o.temperature.is_zero();
    kernel.variant = if draws { "draw" } else { "greedy" };
    kernel.strides("seed", &[0], &[o.seed.stride(0)]);
    kernel.strides("out", &[if rows > 1 { o.out.stride(0) } else { 0 }], &[]);
    kernel.flag("pick", true);
    kernel.whole("n", n);
    if draws {
        kernel.flag("draw", true);
        kernel.flag("long", true); // a thread for each bin
        kernel.flag("some", o.top_k > 0 && o.top_k < n);
        kernel.flag("prefix", o.top_p.get() < 1.0);
        kernel.whole("top_k", o.top_k.min(n));
        kernel.real("top_p", o.top_p.get());
        kernel.real("temperature", o.temperature.get());
        // `n` times the largest logit's weight fits 62 bits.
        let bits = n.max(1).next_power_of_two().ilog2();
        kernel.whole("bits", bits as usize + 1);
        kernel.real("one", 2f32.powi(62 - bits.min(31) as i32).min(2f32.powi(52)));
    }
    kernel.groups = rows;
    Ok(kernel)
}
