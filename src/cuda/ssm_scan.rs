use super::kernel::{Kernel, in_pieces};
use crate::{
    error::{Error, Result},
    layout::Spec,
    op::{Features, Op, SsmScan},
};

pub(super) const THREADS: u32 = 128;
/// States that a group of lanes holds.
pub(super) const MOST: usize = 256;

/// Rows of a block of kernels/ssm_scan.cu.
const ROWS: usize = 32;
/// Steps of a chunk of kernels/ssm_chunks.cu, and from how many on there are chunks.
const CHUNK: usize = 32;
const LONG: usize = 48;

/// Lanes that share a row of `n` states.
pub(super) fn lanes(op: &Op, n: usize) -> Result<usize> {
    if n > MOST {
        return Err(Error::unsupported(op, format_args!("{n} states are more than {MOST}")));
    }
    Ok(n.next_power_of_two().min(32))
}

/// The kernel that goes step by step, and those in chunks where there are enough steps.
pub(super) fn kernels(op: &Op, o: &SsmScan) -> Result<(Kernel, Vec<Kernel>)> {
    op.require(Features::all())?;
    let (batch, t, heads, width, groups, n) = o.dims();
    let lanes = lanes(op, n)?;
    let dense = |s: &Spec| in_pieces(s, 4);
    let rows_alike = dense(&o.b) && dense(&o.c) && width > 0 && width.is_multiple_of(ROWS);
    let rows = batch * heads * width;
    let kernel = |family, entry| {
        let mut kernel = Kernel::new(op, family, entry);
        for name in ["x", "dt", "a", "b", "c", "out", "d", "dt_bias", "z", "state"] {
            kernel.tensor(name);
        }
        [t, heads, width, heads / groups.max(1), n, rows].into_iter().for_each(|v| kernel.word(v));
        kernel.pair(lanes as u32, u32::from(o.softplus));
        (kernel.threads, kernel.blocks) = match family {
            "scan" => (THREADS, (rows * lanes).div_ceil(THREADS as usize)),
            _ => (256, rows / ROWS),
        };
        if t == 0 {
            kernel.blocks = 0;
        }
        kernel
    };
    let chunks = match n {
        64 if rows_alike => ["products_64", "chunks_64", "states_64"],
        128 if rows_alike => ["products_128", "chunks_128", "states_128"],
        _ => return Ok((kernel("scan", "ssm_scan"), Vec::new())),
    };
    let by_step = kernel("ssm_scan", chunks[2]);
    if t < LONG || !dense(&o.x) {
        return Ok((by_step, Vec::new()));
    }
    let mut steps = [chunks[0], chunks[1]].map(|entry| kernel("ssm_chunks", entry));
    let count = t.div_ceil(CHUNK);
    for step in &mut steps {
        step.scratch_address();
        step.scratch = (batch * groups * count).saturating_mul(CHUNK * CHUNK * 4);
        [groups, count].into_iter().for_each(|v| step.word(v));
    }
    steps[0].blocks = if rows == 0 { 0 } else { batch * groups * count };
    steps[1].aligned = vec!["x", "b", "c"];
    steps[1].shared = (3 * CHUNK * (n + 8) + 3 * CHUNK * (CHUNK + 8)) * 4;
    Ok((by_step, steps.into()))
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use crate::{
        cuda::interpreted_tests::device,
        op::scan_tests::{scans, steps_and_decays, what_is_spoiled_stays},
    };

    /// Step by step and in chunks, of which the last is not whole: nothing is left of what a chunk forgets, and all of what comes after.
    #[test]
    fn steps_and_decays_of_any_size() {
        let op = "ssm_scan x=f32:1x75x2x32 dt=f32:1x75x2 a=f32:2 b=f32:1x75x1x64 c=f32:1x75x1x64 out=f32:1x75x2x32 d=f32:2 \
                  dt_bias=f32:2 state=f32:1x2x32x64";
        for op in scans(&[op]) {
            steps_and_decays(&device(), &op, &[0.0, 1.0, 60.0, 1e30], &[-0.0, -1e-3, -500.0, -1e30, 0.02]);
        }
    }

    #[test]
    fn what_is_spoiled_stays_in_its_head() {
        let by_step = "ssm_scan x=f32:2x20x4x8 dt=f32:2x20x4 a=f32:4 b=f32:2x20x2x16 c=f32:2x20x2x16 out=f32:2x20x4x8 d=f32:4 \
                       dt_bias=f32:4 state=f32:2x4x8x16";
        let in_chunks = "ssm_scan x=f32:2x48x4x32 dt=f32:2x48x4 a=f32:4 b=f32:2x48x2x64 c=f32:2x48x2x64 out=f32:2x48x4x32 d=f32:4 \
                         dt_bias=f32:4 state=f32:2x4x32x64";
        scans(&[by_step, in_chunks]).for_each(|op| what_is_spoiled_stays(&device(), &op));
    }
}
