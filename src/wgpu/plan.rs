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
    fn get(
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
}

/// One kernel, sized for one operation.
#[derive(Debug)]
pub(super) struct Compiled {
    name: Arc<str>,
    op: Op,
    queue: Arc<Queue>,
    pipeline: wgpu::ComputePipeline,
    operands: Vec<Operand>,
    params: Vec<u32>,
    grid: (usize, usize),
    table: Option<Table>,
    determinism: Determinism,
    align: usize,
}

impl Compiled {
    /// Compiles the kernel, unless another of the same text was compiled before.
    pub(super) fn new(
        op: &Op,
        kernel: Kernel,
        determinism: Determinism,
        queue: &Arc<Queue>,
        pipelines: &Pipelines,
    ) -> Result<Compiled> {
        let limits = queue.device.limits();
        let declined = |why: String| Error::unsupported(op, why);
        let align = limits.min_storage_buffer_offset_alignment as usize;
        let bindings = kernel.operands.len() + usize::from(!kernel.table.is_empty());
        if bindings > limits.max_storage_buffers_per_shader_stage as usize {
            let most = limits.max_storage_buffers_per_shader_stage;
            return Err(declined(format!("{bindings} operands, and the device binds {most}")));
        }
        let mut operands = Vec::with_capacity(kernel.operands.len());
        for o in &kernel.operands {
            let (elements, bytes) = o.spec.dtype().block();
            let span = o.spec.span();
            if (span + align) as u64 > limits.max_storage_buffer_binding_size {
                let most = limits.max_storage_buffer_binding_size;
                return Err(declined(format!("{} spans {span} bytes, and a binding holds {most}", o.name)));
            }
            operands.push(Operand { span, unit: if elements > 1 { 1 } else { bytes } });
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
        let (op, queue) = (*op, queue.clone());
        Ok(Compiled { name, op, queue, pipeline, operands, params, grid, table, determinism, align })
    }
}

impl Plan for Compiled {
    fn name(&self) -> &str {
        &self.name
    }

    fn op(&self) -> Op {
        self.op
    }

    fn determinism(&self) -> Determinism {
        self.determinism
    }

    unsafe fn launch(&self, args: &[View], _scratch: Option<&View>) -> Result<()> {
        if self.grid.0 == 0 {
            return Ok(());
        }
        let mut firsts: ArrayVec<u32, MAX_OPERANDS> = ArrayVec::new();
        let mut bound = BoundAll::new();
        for (o, view) in self.operands.iter().zip(args) {
            // A binding begins at a multiple of `align`; the rest of the offset is the shader's to add.
            let begin = if o.span == 0 { 0 } else { view.offset() / self.align * self.align };
            let rest = if o.span == 0 { 0 } else { view.offset() - begin };
            firsts.push((rest / o.unit) as u32);
            let size = (rest + o.span).max(4).next_multiple_of(4);
            let buffer = queue::own(view, self.queue.token)?;
            bound.push(Bound { raw: &buffer.raw, id: buffer.life.id, begin, size });
        }
        bound.extend(self.table.as_ref().map(Table::bound));
        self.queue.record(Dispatch {
            name: &self.name,
            pipeline: &self.pipeline,
            bound: &bound,
            params: &self.params,
            firsts: &firsts,
            grid: self.grid,
        })
    }
}
