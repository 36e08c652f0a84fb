//! NVIDIA GPUs through the driver found at run time; kernels are PTX, compiled from `kernels/*.cu` by `tools/ptx` and
//! embedded. Without a driver this module only says so.

mod attention;
#[cfg(all(test, feature = "conformance"))]
mod attention_tests;
mod conv;
mod conv1d;
mod convert;
mod driver;
mod elementwise;
mod gather;
mod grouped_matmul;
#[cfg(all(test, feature = "conformance"))]
mod interpreted_tests;
mod kernel;
mod kv_append;
mod linear_attention;
mod matmul;
#[cfg(all(test, feature = "conformance"))]
mod matmul_tests;
mod module;
mod norm;
mod nvidia;
mod peaks;
mod reduce;
mod rope;
mod sample;
mod scatter;
mod segment;
mod selective_scan;
mod softmax;
mod ssm_scan;
mod top_k;

use std::{sync::Arc, time::Duration};

use cudarc::driver::{CudaContext, sys};

use crate::{
    backend::{Absent, Backend, Buffer, DeviceInfo, Kind, Memory, OpenOptions, Peaks, Plans, Replay, Token, View},
    error::{Error, Result},
    op::{Determinism, Op, SsmScan},
};

use self::{
    driver::{Device, Driver},
    kernel::{Kernel, Sequence},
    module::Modules,
    nvidia::Nvidia,
};

/// Opens every device. What cannot be opened, or the lack of any, is reported with the reason. Loads the driver.
pub(crate) fn open_all(options: &OpenOptions) -> (Vec<Arc<dyn Backend>>, Vec<Absent>) {
    let absent = |why: String| Absent { backend: "cuda", why };
    let count = match nvidia::count() {
        Ok(count) => count,
        Err(why) => return (Vec::new(), vec![absent(why)]),
    };
    let (mut devices, mut missing): (Vec<Arc<dyn Backend>>, Vec<Absent>) = Default::default();
    for ordinal in 0..count {
        match open(ordinal, options) {
            Ok(device) => devices.push(Arc::new(device)),
            Err(e) => missing.push(absent(e.to_string())),
        }
    }
    (devices, missing)
}

fn open(ordinal: usize, options: &OpenOptions) -> Result<Cuda> {
    use sys::CUdevice_attribute::*;
    let failed = |e| Error::device(format_args!("cuda:{ordinal}"), "opening", e);
    let context = CudaContext::new(ordinal).map_err(failed)?;
    let name = context.name().map_err(failed)?;
    let (major, minor) = context.compute_capability().map_err(failed)?;
    if (major, minor) < (7, 5) {
        let why = format!("compute capability {major}.{minor}: the kernels need 7.5 (Turing) or newer");
        return Err(Error::unsupported(name, why));
    }
    let pci = |a| context.attribute(a).map_err(failed);
    let (domain, bus) = (pci(CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?, pci(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?);
    let slot = pci(CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?;
    let integrated = pci(CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0;
    let kind = if integrated { Kind::IntegratedGpu } else { Kind::DiscreteGpu };
    let mut info = DeviceInfo::new("cuda", name, kind);
    info.id = format!("pci:{domain:04x}:{bus:02x}:{slot:02x}.0");
    let cuda = nvidia::version().map_err(failed)?;
    info.driver = format!("sm_{major}{minor}, driver for CUDA {}.{}", cuda.0, cuda.1);
    let memory = context.total_mem().map_err(failed)?;
    (info.memory, info.max_buffer) = (memory as u64, memory);
    let driver = Arc::new(Nvidia::open(context).map_err(failed)?);
    Ok(Cuda::new(info, driver, options.memory_limit))
}

#[derive(Debug)]
struct Cuda {
    info: DeviceInfo,
    device: Arc<Device>,
    modules: Modules,
}

impl Cuda {
    fn new(info: DeviceInfo, driver: Arc<dyn Driver>, limit: usize) -> Cuda {
        let device = Arc::new(Device::new(info.to_string(), driver, limit));
        Cuda { info, device, modules: Modules::default() }
    }

    /// The plan of kernels one after the other.
    fn steps(&self, kernels: Vec<Kernel>) -> Result<Plans> {
        let determinism = Determinism::BatchInvariant;
        let all: Result<Vec<_>> =
            kernels.into_iter().map(|k| k.compile(&self.device, &self.modules, determinism)).collect();
        Ok(Sequence::of(all?, None).into_iter().collect())
    }

    /// Chunks on tensor cores, which came with compute capability 8.0, or step by step: where operands are not aligned, and so everywhere if
    /// bits may not depend on that.
    fn scan(&self, op: &Op, o: &SsmScan) -> Result<Plans> {
        let compile = |determinism| move |k: Kernel| k.compile(&self.device, &self.modules, determinism);
        let (by_step, chunks) = ssm_scan::kernels(op, o)?;
        let otherwise = Arc::new(compile(Determinism::BatchInvariant)(by_step)?);
        let old = self.device.driver.capability() < (8, 0);
        if chunks.is_empty() || old || op.determinism() >= Determinism::BatchInvariant {
            return Ok(vec![otherwise]);
        }
        let steps = chunks.into_iter().map(compile(Determinism::ThreadCount)).collect::<Result<_>>()?;
        Ok(Sequence::of(steps, Some(otherwise)).into_iter().collect())
    }
}

impl Backend for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn token(&self) -> Token {
        self.device.token
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        self.device.alloc(bytes)
    }

    fn write(&self, dst: &View, src: &[u8]) -> Result<()> {
        self.device.write(dst, src)
    }

    fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        self.device.read(src, dst)
    }

    fn plan(&self, op: &Op) -> Result<Plans> {
        let kernel = match op {
            Op::Matmul(o) => return matmul::plans(op, o, &self.device, &self.modules),
            Op::Attention(o) => return attention::plans(op, o, &self.device, &self.modules),
            Op::GroupedMatmul(o) => return grouped_matmul::plans(op, o, &self.device, &self.modules),
            Op::Norm(o) => norm::kernel(op, o)?,
            Op::Elementwise(o) => elementwise::kernel(op, o)?,
            Op::Softmax(o) => softmax::kernel(op, o)?,
            Op::Gather(o) => gather::kernel(op, o)?,
            Op::Scatter(o) => return self.steps(scatter::kernels(op, o)?),
            Op::Conv1d(o) => conv1d::kernel(op, o)?,
            Op::Conv(o) => conv::kernel(op, o)?,
            Op::Convert(o) => convert::kernel(op, o)?,
            Op::KvAppend(o) => kv_append::kernel(op, o)?,
            Op::LinearAttention(o) => linear_attention::kernel(op, o)?,
            Op::Reduce(o) => reduce::kernel(op, o)?,
            Op::Rope(o) => rope::kernel(op, o)?,
            Op::Sample(o) => return self.steps(sample::kernels(op, o, self.device.driver.processors())?),
            Op::Segment(o) => return self.steps(segment::kernels(op, o)?),
            Op::SelectiveScan(o) => selective_scan::kernel(op, o)?,
            Op::SsmScan(o) => return self.scan(op, o),
            Op::TopK(o) => return self.steps(top_k::kernels(op, o, self.device.driver.processors())?),
        };
        let determinism = Determinism::BatchInvariant; // rows are computed apart from each other
        Ok(vec![Arc::new(kernel.compile(&self.device, &self.modules, determinism)?)])
    }

    fn sync(&self) -> Result<()> {
        self.device.sync()
    }

    fn record(&self, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Replay>>> {
        self.device.record(enqueue)
    }

    fn time(&self, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.device.time(enqueue)
    }

    fn peaks(&self) -> Result<Peaks> {
        peaks::measure(&self.device, &self.modules)
    }

    fn memory(&self) -> Memory {
        self.device.account.memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_says_why() {
        let (devices, absent) = open_all(&OpenOptions::default());
        assert!(!devices.is_empty() || !absent.is_empty());
        assert!(absent.iter().all(|a| a.backend == "cuda" && a.why.len() > 10), "{absent:?}");
    }

    #[cfg(feature = "conformance")]
    #[test]
    fn every_device_conforms() {
        for device in open_all(&OpenOptions::default()).0 {
            crate::conformance::check(&*device).assert();
        }
    }
}
