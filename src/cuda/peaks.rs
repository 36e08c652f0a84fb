//! What a device can do at most, measured with kernels/peaks.cu and those of tensor cores beside it.

use std::{sync::Arc, time::Duration};

use super::{
    driver::{Device, Grid, Params, Touched},
    module::Modules,
};
use crate::{
    backend::{Peaks, View},
    error::Result,
};

/// How long a measurement takes at least.
const LONG: Duration = Duration::from_millis(1);
/// Bytes that are read and copied: several times what a cache holds.
const BYTES: usize = 256 << 20;

pub(super) fn measure(device: &Arc<Device>, modules: &Modules) -> Result<Peaks> {
    let bytes = match device.account.memory().limit {
        0 => BYTES,
        limit => BYTES.min(limit / 16 / 4096 * 4096).max(4096),
    };
    let (from, to) = (View::whole(device.alloc(bytes)?), View::whole(device.alloc(bytes)?));
    let processors = device.driver.processors() as u32;
    // Of `work` a block and step.
    let rate = |family, entry, work: u64| {
        let blocks = 4 * processors;
        let run = |steps| {
            launch(device, modules, (family, entry), Grid { blocks, threads: 256, cluster: 1, shared: 0 }, &from, steps)
        };
        let (mut steps, mut time) = (1, run(1)?);
        while time < LONG && steps < 1 << 30 {
            steps *= 4;
            time = run(steps)?;
        }
        Ok(blocks as f64 * (work * steps) as f64 / time.as_secs_f64())
    };
    let moved = |measure: &dyn Fn() -> Result<Duration>| {
        measure()?;
        let best = (0..3).map(|_| measure()).collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or(LONG);
        Ok(bytes as f64 / best.as_secs_f64())
    };
    let read = Grid { blocks: 4 * processors, threads: 512, cluster: 1, shared: 0 };
    let products = |entry, terms: u64| match device.driver.capability() >= (8, 0) {
        true => rate("peaks_products", entry, 8 * 8 * 2 * 16 * 8 * terms),
        false => Ok(0.0),
    };
    let half = match device.driver.capability() {
        (9, 0) => rate("peaks_products.sm_90a", "half", 2 * 4 * 2 * 64 * 128 * 16),
        _ => products("half", 16),
    };
    Ok(Peaks {
        f32_flops: rate("peaks", "f32", 256 * 32 * 2)?,
        half_flops: half?,
        int8_ops: products("int8", 32)?,
        read_bytes: moved(&|| launch(device, modules, ("peaks", "read"), read, &from, 1))?,
        copy_bytes: 2.0 * moved(&|| device.time(&mut || device.copy(&from, &to)))?,
    })
}

/// Launches an entry of a family, with `Args` of kernels/common/peaks.cuh.
fn launch(
    device: &Arc<Device>,
    modules: &Modules,
    (family, entry): (&'static str, &'static str),
    grid: Grid,
    data: &View,
    steps: u64,
) -> Result<Duration> {
    let function = modules.function(device, family, entry)?;
    let address = device.address(data)?;
    let mut params = Params([0; Params::WORDS]);
    params.0[..4].copy_from_slice(&[address, (data.len() / 16) as u64, steps, address]);
    device.time(&mut || {
        // SAFETY: the kernel reads `count` times 16 bytes of `data`, and its sink lies there too.
        unsafe { function.launch(&params, grid, &Touched::default()) }.map_err(|e| device.failed(entry, 0, e))
    })
}
