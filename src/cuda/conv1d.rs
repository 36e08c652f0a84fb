use super::kernel::{Kernel, activation};
use crate::{
    error::Result,
    op::{Conv1d, Features, Op},
};

/// Steps of a thread.
const PART: usize = 32;

pub(super) fn kernel(op: &Op, o: &Conv1d) -> Result<Kernel> {
    op.require(Features::all())?;
    let mut kernel = Kernel::new(op, "conv1d", "conv1d");
    for name in ["x", "w", "out", "bias", "state"] {
        kernel.tensor(name);
    }
    let (batch, t, channels, taps) = o.dims();
    let threads = batch * channels * t.div_ceil(PART);
    [t, channels, taps, threads].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(activation(o.act), 0);
    kernel.blocks = threads.div_ceil(256);
    Ok(kernel)
}
