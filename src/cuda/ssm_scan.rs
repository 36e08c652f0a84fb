use super::kernel::Kernel;
use crate::{
    error::{Error, Result},
    op::{Features, Op, SsmScan},
};

pub(super) const THREADS: u32 = 128;
/// States that a group of lanes holds.
pub(super) const MOST: usize = 256;

/// Rows of a block of kernels/ssm_scan.cu.
const ROWS: usize = 32;

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
    let dense = [&o.b, &o.c]
        .iter()
        .all(|s| s.stride(0) == 1 && (1..s.rank()).all(|d| s.dim(d) <= 1 || s.stride(d).is_multiple_of(4)));
    let rows_alike = dense && width > 0 && width.is_multiple_of(ROWS);
    let (family, entry) = match n {
        64 if rows_alike => ("ssm_scan", "states_64"),
        128 if rows_alike => ("ssm_scan", "states_128"),
        _ => ("scan", "ssm_scan"),
    };
    let mut kernel = Kernel::new(op, family, entry);
    for name in ["x", "dt", "a", "b", "c", "out", "d", "dt_bias", "z", "state"] {
        kernel.tensor(name);
    }
    let rows = batch * heads * width;
    [t, heads, width, heads / groups.max(1), n, rows].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(lanes as u32, u32::from(o.softplus));
    (kernel.threads, kernel.blocks) = match family {
        "ssm_scan" => (256, rows / ROWS),
        _ => (THREADS, (rows * lanes).div_ceil(THREADS as usize)),
    };
    if t == 0 {
        kernel.blocks = 0;
    }
    Ok(kernel)
}
