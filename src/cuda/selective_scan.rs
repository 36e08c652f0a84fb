use super::{kernel::Kernel, ssm_scan};
use crate::{
    error::Result,
    op::{Features, Op, SelectiveScan},
};

/// The states of Mamba-1's models, for which there is a kernel, and the channels of one of its blocks.
const STATES: usize = 16;
const CHANNELS: usize = 32;

/// The scan of Mamba-2 with a head per channel, one row wide, a decay per state, and all channels in one group.
pub(super) fn kernel(op: &Op, o: &SelectiveScan) -> Result<Kernel> {
    op.require(Features::all())?;
    let (batch, t, channels, n) = o.dims();
    let lanes = ssm_scan::lanes(op, n)?;
    let usual = n == STATES;
    let mut kernel = Kernel::new(op, "scan", if usual { "selective_16" } else { "selective_scan" });
    // Where the kernel's dimensions lie in the operand.
    let rows = |d: usize| d.checked_sub(1).filter(|&d| d < 3);
    let states = |d: usize| [Some(0), None, Some(1), Some(2)].get(d).copied().flatten();
    let decays = |d: usize| 1usize.checked_sub(d);
    kernel.tensor_as("x", &rows);
    kernel.tensor("dt");
    kernel.tensor_as("a", &decays);
    kernel.tensor_as("b", &states);
    kernel.tensor_as("c", &states);
    kernel.tensor_as("out", &rows);
    kernel.tensor("d");
    kernel.tensor("dt_bias");
    kernel.tensor_as("z", &rows);
    kernel.tensor_as("state", &states);
    let rows = batch * channels;
    [t, channels, 1, channels.max(1), n, rows].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(lanes as u32, u32::from(o.softplus));
    kernel.threads = ssm_scan::THREADS;
    kernel.blocks = match t {
        0 => 0,
        _ if usual => batch * channels.div_ceil(CHANNELS),
        _ => (rows * lanes).div_ceil(ssm_scan::THREADS as usize),
    };
    Ok(kernel)
}
