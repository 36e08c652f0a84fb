//! Executes PTX without a GPU: the very text that ships, for tests of logic, never of speed.
//!
//! Checked on the way: bounds and alignment of every access, use after free, asynchronous copies that nobody waited for (their
//! target is poisoned until then), races in shared memory, deadlocks, warp-wide instructions of part of a warp, a missing
//! `wgmma.fence` or `wgmma.wait_group`. Warps run in an order drawn from a seed. What is not known is an error.

#![allow(clippy::too_many_arguments, clippy::type_complexity)]

mod cta;
mod decode;
mod memory;
mod mma;
mod parse;
mod step;
mod tensor_map;
mod value;
mod wgmma;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use memory::Mem as Memory;
pub use tensor_map::TensorMap;

/// The kernels of a PTX file.
pub struct Module(parse::File);

/// A grid of one-dimensional blocks.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub blocks: [u32; 3],
    pub threads: u32,
    /// Blocks of a cluster, which divides the first dimension of `blocks`; 1: none.
    pub cluster: u32,
    /// Bytes of shared memory beyond what the kernel declares.
    pub shared: usize,
}

impl Module {
    /// Parses a file; an instruction that is not known is an error.
    pub fn new(text: &str) -> Result<Module, String> {
        guarded(|| Module(parse::parse(text)))
    }

    /// The names of the kernels.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.0.kernels.iter().map(|k| k.name.as_str())
    }

    /// Runs a kernel of one by-value parameter, or of several laid out as PTX does. Gives the number of warp instructions, or what
    /// was wrong.
    pub fn launch(
        &self,
        entry: &str,
        memory: &mut Memory,
        params: &[u8],
        grid: Grid,
        seed: u64,
    ) -> Result<u64, String> {
        let kernel = self.0.kernels.iter().find(|k| k.name == entry).ok_or_else(|| format!("no entry {entry}"))?;
        let Some(params) = params.get(..kernel.param_bytes) else {
            return Err(format!("{entry} takes {} bytes of parameters", kernel.param_bytes));
        };
        memory.bufs.push((memory::GLW, self.0.globals.clone()));
        let ran = guarded(|| {
            let (mut steps, [nx, ny, nz]) = (0, grid.blocks);
            assert!(grid.cluster > 0 && nx.is_multiple_of(grid.cluster), "{nx} blocks in clusters of {}", grid.cluster);
            for block in (0..nx as u64 * ny as u64 * nz as u64).step_by(grid.cluster as usize) {
                let at = [block % nx as u64, block / nx as u64 % ny as u64, block / (nx as u64 * ny as u64)]
                    .map(|i| i as u32);
                let mut cluster = cta::Cluster::new(kernel, memory, params, at, grid, seed);
                cluster.run();
                steps += cluster.steps;
            }
            steps
        });
        memory.free(memory::GLW);
        ran.map_err(|why| format!("{entry}: {why}"))
    }
}

fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        text.unwrap_or("failed").to_string()
    })
}
