//! GPUs through WebGPU's interface: Vulkan, Metal, DirectX 12.
//!
//! `queue` owns the device: memory, copies, the recorded batch, and errors. `shader` makes pipelines of `shaders/*.wgsl`.
//! One file per operation says how its shader is parameterized, or why the operation is declined.

mod attention;
mod conv;
mod conv1d;
mod convert;
mod elementwise;
mod gather;
mod grouped_matmul;
mod kv_append;
mod linear_attention;
mod matmul;
mod norm;
mod plan;
mod queue;
mod reduce;
mod rope;
mod sample;
mod scatter;
mod segment;
mod selective_scan;
mod shader;
mod softmax;
mod ssm_scan;
#[cfg(test)]
mod tests;
mod top_k;

use std::{collections::HashSet, sync::Arc};

use crate::{
    backend::{Absent, Backend, Buffer, DeviceInfo, Kind, Memory, OpenOptions, Plans, Token, View},
    error::{Error, Result},
    op::{Activation, Determinism, Op},
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
    Ok(Wgpu { info, queue, pipelines: Pipelines::default() })
}

#[derive(Debug)]
struct Wgpu {
    info: DeviceInfo,
    queue: Arc<Queue>,
    pipelines: Pipelines,
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
        let kernels: Vec<Kernel> = match op {
            Op::Matmul(o) => matmul::kernels(op, o)?,
            Op::GroupedMatmul(o) => grouped_matmul::kernels(op, o)?,
            Op::Norm(o) => vec![norm::kernel(op, o)?],
            Op::Rope(o) => vec![rope::kernel(op, o)?],
            Op::KvAppend(o) => vec![kv_append::kernel(op, o)?],
            Op::Attention(o) => vec![attention::kernel(op, o)?],
            Op::LinearAttention(o) => vec![linear_attention::kernel(op, o)?],
            Op::Elementwise(o) => vec![elementwise::kernel(op, o)?],
            Op::Softmax(o) => vec![softmax::kernel(op, o)?],
            Op::Segment(o) => vec![segment::kernel(op, o)?],
            Op::Gather(o) => vec![gather::kernel(op, o)?],
            Op::Scatter(o) => vec![scatter::kernel(op, o)?],
            Op::Convert(o) => vec![convert::kernel(op, o)?],
            Op::Reduce(o) => vec![reduce::kernel(op, o)?],
            Op::Conv1d(o) => vec![conv1d::kernel(op, o)?],
            Op::Conv(o) => vec![conv::kernel(op, o)?],
            Op::SsmScan(o) => vec![ssm_scan::kernel(op, o)?],
            Op::SelectiveScan(o) => vec![selective_scan::kernel(op, o)?],
            Op::Sample(o) => vec![sample::kernel(op, o)?],
            Op::TopK(o) => vec![top_k::kernel(op, o)?],
        };
        // Rows are computed apart from each other everywhere; which kernel multiplies depends on the rows unless that is asked for.
        let determinism = match (op, op.determinism()) {
            (Op::Matmul(_) | Op::GroupedMatmul(_), asked) if asked < Determinism::BatchInvariant => {
                Determinism::ThreadCount
            }
            _ => Determinism::BatchInvariant,
        };
        let mut plans = Plans::new();
        for kernel in kernels {
            plans.push(Arc::new(Compiled::new(op, kernel, determinism, &self.queue, &self.pipelines)?));
        }
        Ok(plans)
    }

    fn sync(&self) -> Result<()> {
        self.queue.sync()
    }

    fn memory(&self) -> Memory {
        self.queue.account.memory()
    }
}

/// Declines an operation that writes a block-quantized operand: encoding is the business of `convert` and `kv_append`.
fn require_dtypes(op: &Op) -> Result<()> {
    match op.operands().iter().find(|o| o.role.writes() && o.spec.dtype().is_quantized()) {
        Some(o) => Err(Error::unsupported(
            op,
            format_args!("{} is {}, which this shader does not encode", o.name, o.spec.dtype()),
        )),
        None => Ok(()),
    }
}

/// The formats a shader encodes; the others' encoders are searches, left to the CPU.
fn encodes(dtype: crate::DType) -> bool {
    matches!(dtype, crate::DType::Q8_0 | crate::DType::Q4_0)
}

/// The WGSL function `activate`.
fn activation(act: Activation) -> String {
    let expression = match act {
        Activation::None => "x",
        Activation::Silu => "silu(x)",
        Activation::GeluTanh => "gelu_tanh(x)",
        Activation::GeluErf => "gelu_erf(x)",
        Activation::Relu => "relu(x)",
    };
    format!("fn activate(x: f32) -> f32 {{ return {expression}; }}")
}
