//! The shipped PTX without a GPU: planning, parameters, grids and kernels, run by an interpreter that checks every access.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ptxemu::{Grid, Memory, Module};

use super::{
    Cuda,
    driver::{Driver, Failure, Function, Params},
    module::KERNELS,
};
use crate::backend::{DeviceInfo, Kind};

/// Bytes it may hold: what the kit asks beyond must be refused.
const LIMIT: usize = 1 << 28;

/// Memory and an interpreter in place of a device.
#[derive(Debug, Default)]
struct Interpreter(Arc<Shared>);

#[derive(Default)]
struct Shared(Mutex<Memory>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for Interpreter {
    fn alloc(&self, bytes: usize) -> Result<u64, Failure> {
        if bytes > LIMIT {
            return Err(Failure::OutOfMemory);
        }
        Ok(self.0.lock().alloc(vec![0; bytes]))
    }

    fn free(&self, address: u64) {
        self.0.lock().free(address);
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), Failure> {
        let mut memory = self.0.lock();
        let room = memory.at(to, bytes.len()).ok_or_else(|| Failure::Other("write outside".into()))?;
        room.copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        let mut memory = self.0.lock();
        bytes.copy_from_slice(memory.at(from, bytes.len()).ok_or_else(|| Failure::Other("read outside".into()))?);
        Ok(())
    }

    fn load(&self, ptx: &'static str, entry: &str) -> Result<Arc<dyn Function>, Failure> {
        // The file as it is now, so that a kernel can be tried without compiling the crate anew.
        let name = KERNELS.iter().find(|k| std::ptr::eq(k.1, ptx)).map(|k| format!("kernels/{}.ptx", k.0));
        let file = name.map(|n| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(n));
        let text = file.and_then(|f| std::fs::read_to_string(f).ok());
        let module = Module::new(text.as_deref().unwrap_or(ptx)).map_err(Failure::Other)?;
        Ok(Arc::new(Interpreted { module, entry: entry.into(), memory: self.0.clone() }))
    }

    fn sync(&self) -> Result<(), Failure> {
        Ok(())
    }
}

struct Interpreted {
    module: Module,
    entry: String,
    memory: Arc<Shared>,
}

impl std::fmt::Debug for Interpreted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.entry)
    }
}

impl Function for Interpreted {
    unsafe fn launch(&self, params: &Params, blocks: u32, threads: u32) -> Result<(), Failure> {
        let grid = Grid { blocks: [blocks, 1, 1], threads, shared: 0 };
        let params = bytemuck::cast_slice(&params.0);
        let run = self.module.launch(&self.entry, &mut self.memory.lock(), params, grid, 1);
        run.map(|_| ()).map_err(Failure::Other)
    }
}

fn device() -> Cuda {
    Cuda::new(DeviceInfo::new("cuda", "interpreter", Kind::SoftwareGpu), Arc::new(Interpreter::default()), LIMIT)
}

mod tests {
    use super::*;
    use crate::conformance::{Options, Verdict, cases, check_case, check_with};

    /// Work that an interpreter does in seconds.
    const SMALL: u64 = 1 << 19;

    #[test]
    fn the_shipped_kernels_conform() {
        let device = device();
        let (mut ran, mut failed) = (0, Vec::new());
        // A few cases of each operation; `TESELA_CASE=' '` runs all.
        let quick = std::env::var_os("TESELA_CASE").is_none();
        for case in cases(&Options { quick, ..Options::from_env() })
            .unwrap_or_default()
            .iter()
            .filter(|c| c.op.cost().flops < SMALL)
        {
            for outcome in check_case(&device, case) {
                ran += usize::from(outcome.verdict == Verdict::Passed);
                if outcome.verdict == Verdict::Failed {
                    failed.push(format!("{} {}\n    {}", outcome.kernel, outcome.id, outcome.why));
                }
            }
        }
        println!("{ran} passed, {} failed", failed.len());
        assert!(failed.is_empty(), "{}", failed.join("\n"));
        assert!(ran > 30 || !quick, "only {ran} cases ran");
    }

    #[test]
    fn the_contract_holds() {
        let options = Options { filter: Some("contract".into()), ..Options::default() };
        check_with(&device(), &options, &mut |_, _| {}).assert();
    }
}
