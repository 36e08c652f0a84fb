//! A compiled kernel, ready to be launched.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use arrayvec::ArrayVec;

use crate::{
    backend::{Plan, View},
    error::{Error, Result},
    op::{Determinism, MAX_OPERANDS, Op},
};

use super::{
    queue::{self, Bound, BoundAll, Dispatch, Queue, Table},
    shader::Kernel,
};

/// Pipelines by their kernels' keys: the device's, for all operations. Different ones are compiled side by side, each once: who asks
/// for one that is being compiled waits for it.
#[derive(Debug, Default)]
pub(super) struct Pipelines(Mutex<HashMap<String, Slot>>);

type Slot = Arc<OnceLock<Result<wgpu::ComputePipeline>>>;

impl Pipelines {
    pub(super) fn get(
        &self,
        key: String,
        compile: impl FnOnce() -> Result<wgpu::ComputePipeline>,
    ) -> Result<wgpu::ComputePipeline> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default().clone();
        let pipeline = slot.get_or_init(compile).clone();
        if pipeline.is_err() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key); // what failed may be tried again
        }
        pipeline
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[derive(Debug)]
struct Operand {
    span: usize, // bytes bound
    unit: usize, // bytes that `NAME_at` counts
    quads: bool, // must begin at a multiple of 16 bytes
}

/// One dispatch.
#[derive(Debug)]
struct Step {
    name: Arc<str>,
    pipeline: wgpu::ComputePipeline,
    operands: Vec<Operand>, // the scratch memory last, where there is any
    params: Vec<u32>,
    grid: (usize, usize),
    table: Option<Table>,
}

/// One kernel, sized for one operation.
#[derive(Debug)]
pub(super) struct Compiled {
    op: Op,
    queue: Arc<Queue>,
    steps: Vec<Step>,
    otherwise: Option<Box<Otherwise>>,
    scratch: usize,
    determinism: Determinism,
    align: usize,
}

/// What is launched where an operand is not aligned as the steps want it: rare, so compiled by the first such launch.
#[derive(Debug)]
struct Otherwise {
    kernel: Kernel,
    pipelines: Arc<Pipelines>,
    compiled: OnceLock<Compiled>,
}

impl Otherwise {
    fn get(&self, of: &Compiled) -> Result<&Compiled> {
        if self.compiled.get().is_none() {
            let compiled = Compiled::new(&of.op, self.kernel.clone(), of.determinism, &of.queue, &self.pipelines)?;
            let _ = self.compiled.set(compiled); // unless another thread was faster
        }
        self.compiled.get().ok_or_else(|| Error::unsupported(of.op, "no kernel for operands that are not aligned"))
    }
}

impl Compiled {
    /// Compiles the kernel, unless another of the same text was compiled before.
    pub(super) fn new(
        op: &Op,
        mut kernel: Kernel,
        determinism: Determinism,
        queue: &Arc<Queue>,
        pipelines: &Arc<Pipelines>,
    ) -> Result<Compiled> {
        let otherwise = kernel.otherwise.take().map(|kernel| {
            Box::new(Otherwise { kernel: *kernel, pipelines: pipelines.clone(), compiled: OnceLock::new() })
        });
        let scratch = 4 * otherwise.as_ref().map_or(0, |o| o.kernel.scratch).max(kernel.scratch);
        let mut steps = Vec::new();
        let mut next = Some(Box::new(kernel));
        while let Some(mut kernel) = next {
            next = kernel.then.take();
            steps.push(Step::new(op, &kernel, queue, pipelines)?);
        }
        let align = queue.alignment();
        Ok(Compiled { op: *op, queue: queue.clone(), steps, otherwise, scratch, determinism, align })
    }
}

impl Step {
    fn new(op: &Op, kernel: &Kernel, queue: &Arc<Queue>, pipelines: &Pipelines) -> Result<Step> {
        let limits = queue.device.limits();
        let declined = |why: String| Error::unsupported(op, why);
        let bindings = kernel.operands.len() + usize::from(!kernel.table.is_empty()) + usize::from(kernel.scratch > 0);
        if bindings > limits.max_storage_buffers_per_shader_stage as usize {
            let most = limits.max_storage_buffers_per_shader_stage;
            return Err(declined(format!("{bindings} operands, and the device binds {most}")));
        }
        let mut operands = Vec::with_capacity(kernel.operands.len() + 1);
        let scratch = (kernel.scratch > 0).then_some(("scratch", 4 * kernel.scratch, 4, false));
        let own = kernel.operands.iter().map(|o| {
            let (elements, bytes) = o.spec.dtype().block();
            (o.name, o.spec.span(), if elements > 1 { 1 } else { bytes }, kernel.by_quads(o.name))
        });
        for (name, span, unit, quads) in own.chain(scratch) {
            let most = queue.most_bound();
            if span > most {
                return Err(declined(format!("{name} spans {span} bytes, and a binding holds {most}")));
            }
            operands.push(Operand { span, unit, quads });
        }
        let grid = kernel.grid();
        if grid.1 > 65535 {
            return Err(declined(format!("{} workgroups are more than one dispatch holds", kernel.groups)));
        }
        let params = kernel.words().map_err(declined)?;
        let types: Vec<&str> = kernel.operands.iter().take(2).map(|o| o.spec.dtype().name()).collect();
        let types = if types[0] == types[types.len() - 1] { types[0].into() } else { types.join("-") };
        let name: Arc<str> = format!("wgpu-{types}-{}", kernel.variant).into();
        let pipeline = pipelines.get(kernel.key(), || queue.compile(&name, kernel.source()?, bindings))?;
        let table = if kernel.table.is_empty() { None } else { Some(queue.table(&kernel.table)?) };
        let grid = if kernel.groups == 0 { (0, 0) } else { grid };
        Ok(Step { name, pipeline, operands, params, grid, table })
    }

    fn launch(&self, queue: &Queue, align: usize, args: &[View], scratch: Option<&View>) -> Result<()> {
        if self.grid.0 == 0 {
            return Ok(());
        }
        let mut firsts: ArrayVec<u32, { MAX_OPERANDS + 1 }> = ArrayVec::new();
        let mut bound = BoundAll::new();
        for (i, (o, view)) in self.operands.iter().zip(args.iter().chain(scratch)).enumerate() {
            // A binding begins at a multiple of `align`; the rest of the offset is the shader's to add.
            let begin = if o.span == 0 { 0 } else { view.offset() / align * align };
            let rest = if o.span == 0 { 0 } else { view.offset() - begin };
            firsts.push((rest / o.unit) as u32);
            let size = (rest + o.span).max(4).next_multiple_of(if o.quads { 16 } else { 4 });
            let buffer = queue::own(view, queue.token)?;
            if i == args.len() {
                bound.extend(self.table.as_ref().map(Table::bound));
            }
            bound.push(Bound { raw: &buffer.raw, id: buffer.life.id, begin, size });
        }
        if self.operands.len() == args.len() {
            bound.extend(self.table.as_ref().map(Table::bound));
        }
        queue.record(Dispatch {
            name: &self.name,
            pipeline: &self.pipeline,
            bound: &bound,
            params: &self.params,
            firsts: &firsts,
            grid: self.grid,
        })
    }
}

impl Plan for Compiled {
    fn name(&self) -> &str {
        &self.steps[0].name
    }

    fn op(&self) -> Op {
        self.op
    }

    fn scratch(&self) -> usize {
        self.scratch
    }

    fn determinism(&self) -> Determinism {
        self.determinism
    }

    unsafe fn launch(&self, args: &[View], scratch: Option<&View>) -> Result<()> {
        let misaligned = |(o, view): (&Operand, &View)| o.quads && o.span > 0 && !view.offset().is_multiple_of(16);
        if let Some(otherwise) = &self.otherwise
            && self.steps[0].operands.iter().zip(args).any(misaligned)
        {
            // SAFETY: the caller's promise; the scratch memory is as long as either asks.
            return unsafe { otherwise.get(self)?.launch(args, scratch) };
        }
        self.steps.iter().try_for_each(|s| s.launch(&self.queue, self.align, args, scratch))
    }
}
