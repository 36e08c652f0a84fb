//! GPUs through WebGPU's interface: Vulkan, Metal, DirectX 12.
//!
//! `adapter` finds and opens the devices; `queue` owns one: memory, copies, the recorded batch, and errors. `shader` makes pipelines of `shaders/*.wgsl`.
//! One file per operation says how its shader is parameterized, or why the operation is declined.

mod adapter;
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
mod parts;
mod plan;
mod queue;
mod read;
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

use std::sync::Arc;

use crate::{
    backend::{Backend, Buffer, DeviceInfo, Memory, Plan, Plans, Reading, Token, View},
    error::{Error, Result},
    op::{Activation, Determinism, Op, Operand},
};

pub(crate) use self::adapter::open_all;
use self::{
    adapter::Abilities,
    plan::{Compiled, Pipelines},
    queue::Queue,
    shader::Kernel,
};

#[derive(Debug)]
struct Wgpu {
    info: DeviceInfo,
    abilities: Abilities,
    queue: Arc<Queue>,
    pipelines: Arc<Pipelines>,
}

impl Drop for Wgpu {
    fn drop(&mut self) {
        self.queue.keep_compiled();
    }
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

    fn read_later(&self, src: &View) -> Result<Reading> {
        Ok(Box::pin(self.queue.read_later(src)?))
    }

    fn plan(&self, op: &Op) -> Result<Plans> {
        let parts = parts::of(op, self.queue.most_bound())?;
        if !parts.is_empty() {
            return parts::Parts::plans(op, parts, |part| self.compile(&part.op, part.kernels(op, &self.abilities)?));
        }
        self.compile(op, kernels(op, &self.abilities)?)
    }

    fn sync(&self) -> Result<()> {
        self.queue.sync()
    }

    fn memory(&self) -> Memory {
        self.queue.account.memory()
    }
}

impl Wgpu {
    fn compile(&self, op: &Op, kernels: Vec<Kernel>) -> Result<Plans> {
        // Rows are computed apart from each other everywhere; how many are computed together, and so in which order each is summed, depends
        // on how many there are unless that is asked for.
        let determinism = match (op, op.determinism()) {
            (Op::Matmul(_) | Op::GroupedMatmul(_) | Op::Attention(_), asked) if asked < Determinism::BatchInvariant => {
                Determinism::ThreadCount
            }
            _ => Determinism::BatchInvariant,
        };
        let compile = |kernel| Compiled::new(op, kernel, determinism, &self.queue, &self.pipelines);
        let plan = &|kernel| compile(kernel).map(|plan| Arc::new(plan) as Arc<dyn Plan>);
        let mut kernels = kernels.into_iter();
        let Some(first) = kernels.next() else { return Ok(Plans::new()) };
        if kernels.len() == 0 || cfg!(target_arch = "wasm32") {
            return std::iter::once(first).chain(kernels).map(plan).collect();
        }
        // Side by side: compiling takes a driver long. What a device has no room for is left out, as long as something remains.
        let plans: Vec<Result<_>> = std::thread::scope(|scope| {
            let others: Vec<_> = kernels.map(|kernel| scope.spawn(move || plan(kernel))).collect();
            let mut plans = vec![plan(first)];
            plans.extend(others.into_iter().filter_map(|other| other.join().ok()));
            plans
        });
        let (good, bad): (Vec<_>, Vec<_>) = plans.into_iter().partition(Result::is_ok);
        match bad.into_iter().next() {
            Some(Err(why)) if good.is_empty() => Err(why),
            _ => Ok(good.into_iter().flatten().collect()),
        }
    }
}

/// Every kernel for an operation, best guess first, on a device with these abilities.
fn kernels(op: &Op, able: &Abilities) -> Result<Vec<Kernel>> {
    let mut kernels = match op {
        Op::Matmul(o) => matmul::kernels(op, o, able)?,
        Op::GroupedMatmul(o) => grouped_matmul::kernels(op, o)?,
        Op::Norm(o) => vec![norm::kernel(op, o)?],
        Op::Rope(o) => vec![rope::kernel(op, o)?],
        Op::KvAppend(o) => vec![kv_append::kernel(op, o)?],
        Op::Attention(o) => attention::kernels(op, o)?,
        Op::LinearAttention(o) => vec![linear_attention::kernel(op, o)?],
        Op::Elementwise(o) => vec![elementwise::kernel(op, o)?],
        Op::Softmax(o) => vec![softmax::kernel(op, o)?],
        Op::Segment(o) => vec![segment::kernel(op, o)?],
        Op::Gather(o) => vec![gather::kernel(op, o, 0, o.table.dim(1))?],
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
    kernels.iter_mut().for_each(|k| k.enable(able));
    Ok(kernels)
}

/// Declines an operation that writes a block-quantized operand: encoding is the business of `convert` and `kv_append`.
fn require_dtypes(op: &Op) -> Result<()> {
    require_written(op, |_| false)
}

/// The same but for the formats that a shader encodes.
fn require_encoded(op: &Op) -> Result<()> {
    require_written(op, encodes)
}

fn require_written(op: &Op, known: fn(crate::DType) -> bool) -> Result<()> {
    let unknown = |o: &&Operand| o.role.writes() && o.spec.dtype().is_quantized() && !known(o.spec.dtype());
    match op.operands().iter().find(unknown) {
        Some(o) => Err(Error::unsupported(
            op,
            format_args!("{} is {}, which this shader does not encode", o.name, o.spec.dtype()),
        )),
        None => Ok(()),
    }
}

/// The formats a shader encodes; the others' encoders are searches, left to the CPU.
fn encodes(dtype: crate::DType) -> bool {
    use crate::DType::*;
    matches!(dtype, Q8_0 | Q8_1 | Q4_0 | Q4_1 | Q5_0 | Q5_1)
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
