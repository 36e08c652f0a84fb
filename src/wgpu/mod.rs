//! GPUs through WebGPU's interface: Vulkan, Metal, DirectX 12.
//!
//! `queue` owns the device: memory, copies, the recorded batch, and errors. `shader` makes pipelines of `shaders/*.wgsl`.
//! One file per operation says how its shader is parameterized, or why the operation is declined.

mod attention;
mod convert;
mod elementwise;
mod gather;
mod kv_append;
mod matmul;
mod norm;
mod plan;
mod queue;
mod reduce;
mod rope;
mod sample;
mod shader;
mod softmax;
#[cfg(test)]
mod tests;
mod top_k;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    backend::{Absent, Backend, Buffer, DeviceInfo, Kind, Memory, OpenOptions, Plans, Token, View},
    error::{Error, Result},
    op::{Determinism, Op},
};

use self::{
    plan::{Compiled, Pipelines},
    queue::Queue,
    shader::Kernel,
};

/// Opens every adapter once. What cannot be opened, or the lack of any, is reported with the reason.
pub(crate) fn open_all(options: &OpenOptions) -> (Vec<Arc<dyn Backend>>, Vec<Absent>) {
    let absent = |why: String| Absent { backend: "wgpu", why };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    if adapters.is_empty() {
        let why = "no adapter: needs a Vulkan, Metal or DirectX 12 driver (on Debian, mesa-vulkan-drivers)".into();
        return (Vec::new(), vec![absent(why)]);
    }
    // The same hardware behind two interfaces is one device: the interface first in this order is kept.
    adapters.sort_by_key(|a| match a.get_info().backend {
        wgpu::Backend::Vulkan => 0,
        wgpu::Backend::Metal => 1,
        wgpu::Backend::Dx12 => 2,
        _ => 3,
    });
    let mut seen = HashSet::new();
    let (mut devices, mut missing): (Vec<Arc<dyn Backend>>, Vec<Absent>) = Default::default();
    let infos: Vec<wgpu::AdapterInfo> = adapters.iter().map(|a| a.get_info()).collect();
    for (i, adapter) in adapters.iter().enumerate() {
        let id = identity(&infos, i);
        if !seen.insert(id.clone()) {
            continue;
        }
        match open(adapter, id, options) {
            Ok(device) => devices.push(Arc::new(device)),
            Err(e) => missing.push(absent(format!("{}: {e}", infos[i].name))),
        }
    }
    (devices, missing)
}

/// The PCI address where the interface tells it; else vendor, device, and a number among equals of the same interface, so that twins
/// stay two and interfaces agree.
fn identity(infos: &[wgpu::AdapterInfo], i: usize) -> String {
    let info = &infos[i];
    if !info.device_pci_bus_id.is_empty() {
        return format!("pci:{}", info.device_pci_bus_id.to_lowercase());
    }
    let same = |o: &&wgpu::AdapterInfo| (o.backend, o.vendor, o.device) == (info.backend, info.vendor, info.device);
    let number = infos[..i].iter().filter(same).count();
    format!("gpu:{:04x}:{:04x}:{number}", info.vendor, info.device)
}

fn open(adapter: &wgpu::Adapter, id: String, options: &OpenOptions) -> Result<Wgpu> {
    let about = adapter.get_info();
    let limits = adapter.limits();
    let request = adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("tesela"),
        required_features: wgpu::Features::empty(), // what the shaders of today need
        required_limits: limits.clone(),
        ..Default::default()
    });
    let (device, queue) = pollster::block_on(request).map_err(|e| Error::device(&about.name, "opening", e))?;
    let mut info = DeviceInfo::new(
        "wgpu",
        &about.name,
        match about.device_type {
            wgpu::DeviceType::DiscreteGpu | wgpu::DeviceType::VirtualGpu => Kind::DiscreteGpu,
            wgpu::DeviceType::IntegratedGpu => Kind::IntegratedGpu,
            wgpu::DeviceType::Cpu => Kind::SoftwareGpu,
            wgpu::DeviceType::Other => Kind::Accelerator,
        },
    );
    info.id = id;
    info.driver = format!("{} {} {}", about.backend, about.driver, about.driver_info).trim_end().into();
    info.max_buffer = usize::try_from(limits.max_buffer_size).unwrap_or(usize::MAX);
    let queue = Arc::new(Queue::new(info.to_string(), device, queue, options.memory_limit)?);
    Ok(Wgpu { info, queue, pipelines: Mutex::default() })
}

#[derive(Debug)]
struct Wgpu {
    info: DeviceInfo,
    queue: Arc<Queue>,
    pipelines: Mutex<Pipelines>,
}

impl Backend for Wgpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn token(&self) -> Token {
        self.queue.token
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        self.queue.alloc(bytes)
    }

    fn write(&self, dst: &View, src: &[u8]) -> Result<()> {
        self.queue.write(dst, src)
    }

    fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        self.queue.read(src, dst)
    }

    fn plan(&self, op: &Op) -> Result<Plans> {
        let kernel: Kernel = match op {
            Op::Matmul(o) => matmul::kernel(op, o)?,
            Op::Norm(o) => norm::kernel(op, o)?,
            Op::Rope(o) => rope::kernel(op, o)?,
            Op::KvAppend(o) => kv_append::kernel(op, o)?,
            Op::Attention(o) => attention::kernel(op, o)?,
            Op::Elementwise(o) => elementwise::kernel(op, o)?,
            Op::Softmax(o) => softmax::kernel(op, o)?,
            Op::Gather(o) => gather::kernel(op, o)?,
            Op::Convert(o) => convert::kernel(op, o)?,
            Op::Reduce(o) => reduce::kernel(op, o)?,
            Op::Sample(o) => sample::kernel(op, o)?,
            Op::TopK(o) => top_k::kernel(op, o)?,
            _ => return Err(Error::unsupported(op, "no shader is written for this operation yet")),
        };
        // Rows are computed apart from each other everywhere; which kernel multiplies depends on the rows unless that is asked for.
        let determinism = match (op, op.determinism()) {
            (Op::Matmul(_), asked) if asked < Determinism::BatchInvariant => Determinism::ThreadCount,
            _ => Determinism::BatchInvariant,
        };
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(vec![Arc::new(Compiled::new(op, kernel, determinism, &self.queue, &mut pipelines)?)])
    }

    fn sync(&self) -> Result<()> {
        self.queue.sync()
    }

    fn memory(&self) -> Memory {
        self.queue.account.memory()
    }
}

/// Declines an operation with an operand whose dtype this backend's shaders neither load nor, where it is written, store.
fn require_dtypes(op: &Op) -> Result<()> {
    use crate::dtype::DType::*;
    for o in &op.operands() {
        let d = o.spec.dtype();
        if matches!(d, F8E4M3 | F8E5M2)
            || (d.is_quantized() && (o.role.writes() || !matches!(d, Q4_0 | Q8_0 | Q4_K | Q6_K)))
        {
            let verb = if o.role.writes() { "stores" } else { "loads" };
            return Err(Error::unsupported(op, format_args!("{} is {d}, which no shader {verb} yet", o.name)));
        }
    }
    Ok(())
}
