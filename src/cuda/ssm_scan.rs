use super::kernel::Kernel;
use crate::{
    error::{Error, Result},
    op::{Features, Op, SsmScan},
};

pub(super) const THREADS: u32 = 128;
/// States that a group of lanes holds.
pub(super) const MOST: usize = 256;

/// Lanes that share a row of `n` states.
pub(super) fn lanes(op: &Op, n: usize) -> Result<usize> {
    if n > MOST {
        return Err(Error::unsupported(op, format_args!("{n} states are more than {MOST}")));
    }
    Ok(n.next_power_of_two().min(32))
}

pub(super) fn kernel(op: &Op, o: &SsmScan) -> Result<Kernel> {
    op.require(Features::all())?;
    let (batch, t, heads, width, groups, n) = o.dims();
    let lanes = lanes(op, n)?;
    let mut kernel = Kernel::new(op, "scan", "ssm_scan");
    for name in ["x", "dt", "a", "b", "c", "out", "d", "dt_bias", "z", "state"] {
        kernel.tensor(name);
    }
    let rows = batch * heads * width;
    [t, heads, width, heads / groups.max(1), n, rows].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(lanes as u32, u32::from(o.softplus));
    kernel.threads = THREADS;
    kernel.blocks = if t == 0 { 0 } else { (rows * lanes).div_ceil(THREADS as usize) };
    Ok(kernel)
}
