//! What an op file makes: a plan from a closure over checked, typed operands.

use std::{
    any::Any,
    fmt,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use arrayvec::ArrayVec;

use super::{Device, pool::Pool, simd::Isa};
use crate::{
    backend::{Packing, Plan, Plans, View},
    dtype::DType,
    error::{Error, Result},
    host,
    layout::Spec,
    op::{Determinism, Features, MAX_OPERANDS, Op, Operand, Operands},
};

type Run = Box<dyn Fn(&Args, &mut Pool) + Send + Sync>;
type Pack = Box<dyn Fn(Range<usize>, Tensor, Tensor, &mut Pool) + Send + Sync>;

/// More elements than memory holds: such an operand repeats itself (stride 0), and would take days. Declined, so that counts of tasks and
/// sizes of scratch memory stay far from overflowing.
const MOST: usize = 1 << 44;

/// One kernel for one operation: see the [module above](super) for how an op file uses it.
pub(crate) struct Kernel {
    device: Arc<Device>,
    op: Op,
    operands: Operands,
    name: String,
    scratch: usize,
    determinism: Determinism,
    packings: ArrayVec<(usize, Packing, Pack), 2>,
    run: Option<Run>,
}

impl Kernel {
    /// Starts a kernel for `op` named `cpu-{what}-{isa}`. Declines unless it honours every option in use, all of which are in
    /// `known`. What it promises by default is what every kernel here should keep: results that do not depend on the number of threads.
    pub(crate) fn new(
        device: &Arc<Device>,
        op: impl Into<Op>,
        what: fmt::Arguments<'_>,
        known: Features,
    ) -> Result<Kernel> {
        let op = op.into();
        op.require(known | Features::DETERMINISM)?;
        // Extents of 0 count as 1: they hide no others.
        let extent = |o: &Operand| o.spec.shape().iter().map(|&n| n.max(1)).product::<usize>();
        if let Some(o) = op.operands().iter().find(|o| extent(o) > MOST) {
            let why = format_args!("{} is {}: more elements than can be walked", o.name, o.spec);
            return Err(Error::unsupported(op, why));
        }
        Ok(Kernel {
            device: device.clone(),
            operands: op.operands(),
            name: format!("cpu-{what}-{}", device.isa.name()),
            op,
            scratch: 0,
            determinism: Determinism::ThreadCount,
            packings: ArrayVec::new(),
            run: None,
        })
    }

    /// Bytes of scratch memory lent to each launch: [`Args::scratch`].
    pub(crate) fn scratch(mut self, bytes: usize) -> Kernel {
        self.scratch = bytes;
        self
    }

    /// Promises another reproducibility than independence of the thread count.
    pub(crate) fn determinism(mut self, promised: Determinism) -> Kernel {
        self.determinism = promised;
        self
    }

    /// Wants an operand packed. `pack` gets the rows, the plain rows (a dense tensor of just these) and the whole packed weight.
    pub(crate) fn packing(
        mut self,
        operand: usize,
        packing: Packing,
        pack: impl Fn(Range<usize>, Tensor, Tensor, &mut Pool) + Send + Sync + 'static,
    ) -> Kernel {
        self.packings.push((operand, packing, Box::new(pack)));
        self
    }

    /// The finished plan, alone in its list. `run` computes the operation; it allocates nothing and may panic only by mistake.
    pub(crate) fn plan(mut self, run: impl Fn(&Args, &mut Pool) + Send + Sync + 'static) -> Result<Plans> {
        if self.op.determinism() > self.determinism {
            return Err(Error::unsupported(
                self.op,
                format_args!("{} promises {} determinism only", self.name, self.determinism),
            ));
        }
        let memory = self.device.info.memory;
        if memory > 0 && self.scratch as u64 > memory / 4 && !self.op.is_empty() {
            // Asking for it would be granted, and using it would end the process.
            let why = format_args!(
                "{} needs {} bytes of scratch memory, more than a quarter of the machine's",
                self.name, self.scratch
            );
            return Err(Error::unsupported(self.op, why));
        }
        if self.op.is_empty() {
            self.scratch = 0; // of a size made from extents that nothing has
        } else {
            self.run = Some(Box::new(run));
        }
        Ok(vec![Arc::new(self)])
    }

    fn pointer(&self, view: &View) -> Result<*mut u8> {
        host::pointer(view, self.device.token)
    }

    /// Runs a kernel's code under the device's lock. A panic there is a mistake of this crate; it becomes an error all the same.
    fn guarded(&self, call: impl FnOnce(&mut Pool)) -> Result<()> {
        let mut pool = self.device.lock();
        catch_unwind(AssertUnwindSafe(|| call(&mut pool))).map_err(|panic: Box<dyn Any + Send>| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked");
            Error::device(&self.device.info, &self.name, text)
        })
    }
}

impl Plan for Kernel {
    fn name(&self) -> &str {
        &self.name
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

    fn packing(&self, operand: usize) -> Option<Packing> {
        self.packings.iter().find(|p| p.0 == operand).map(|p| p.1)
    }

    unsafe fn pack(&self, operand: usize, rows: Range<usize>, plain: &View, packed: &View) -> Result<()> {
        let (Some((_, _, pack)), Some(o)) = (self.packings.iter().find(|p| p.0 == operand), self.operands.get(operand))
        else {
            return Err(Error::unsupported(&self.name, format_args!("operand {operand} has no packed form")));
        };
        let part = Spec::new(o.spec.dtype(), &[rows.len(), o.spec.dim(0)])?;
        let plain = Tensor { pointer: Pointer(self.pointer(plain)?), spec: &part };
        let packed = Tensor { pointer: Pointer(self.pointer(packed)?), spec: &o.spec };
        self.guarded(|pool| pack(rows, plain, packed, pool))
    }

    unsafe fn launch(&self, args: &[View], scratch: Option<&View>) -> Result<()> {
        let mut tensors = ArrayVec::new();
        for (view, o) in args.iter().zip(&self.operands) {
            tensors.push((o.name, Tensor { pointer: Pointer(self.pointer(view)?), spec: &o.spec }));
        }
        let scratch = scratch.map(|s| self.pointer(s)).transpose()?;
        let scratch = scratch.unwrap_or(std::ptr::dangling_mut::<Line>().cast());
        let args = Args { tensors, scratch: Pointer(scratch), isa: self.device.isa };
        self.guarded(|pool| self.run.iter().for_each(|run| run(&args, pool)))
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("name", &self.name).field("op", &self.op).finish_non_exhaustive()
    }
}

/// Scratch memory's alignment.
#[repr(align(64))]
struct Line;

/// A launch's operands: present, as long as their specs' spans, aligned to their elements, and not touched by anybody else.
pub(crate) struct Args<'a> {
    tensors: ArrayVec<(&'static str, Tensor<'a>), MAX_OPERANDS>,
    scratch: Pointer,
    /// The instruction set to compute with: `simd!(args.isa, s => ..)`.
    pub(crate) isa: Isa,
}

impl<'a> Args<'a> {
    /// The operand of this name, where the operation has it.
    pub(crate) fn get(&self, name: &str) -> Option<Tensor<'a>> {
        self.tensors.iter().find(|t| t.0 == name).map(|t| t.1)
    }

    /// A required operand. Panics where the operation has none of that name.
    pub(crate) fn of(&self, name: &str) -> Tensor<'a> {
        self.get(name).unwrap_or_else(|| unreachable!("operand {name}"))
    }

    /// True where no other operand begins where this one does.
    pub(crate) fn alone(&self, name: &str) -> bool {
        let at = |t: &Tensor| t.pointer::<u8>();
        let own = self.get(name);
        self.tensors.iter().all(|(other, t)| *other == name || own.as_ref().is_none_or(|own| at(own) != at(t)))
    }

    /// The scratch memory asked for with [`Kernel::scratch`]: 64-byte aligned, contents undefined.
    pub(crate) fn scratch<T>(&self) -> *mut T {
        self.scratch.0.cast()
    }
}

/// A pointer that tasks on other threads may use: what it points at is the launch's own.
#[derive(Clone, Copy)]
struct Pointer(*mut u8);
// SAFETY: a launch holds the device's lock, and its kernel keeps its tasks' writes apart.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

/// An operand in memory: where it begins and what it is.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    pointer: Pointer,
    /// Dtype, shape, strides.
    pub(crate) spec: &'a Spec,
}

impl<'a> Tensor<'a> {
    #[cfg(test)]
    pub(crate) fn new(pointer: *mut u8, spec: &'a Spec) -> Tensor<'a> {
        Tensor { pointer: Pointer(pointer), spec }
    }

    /// Element type.
    pub(crate) fn dtype(&self) -> DType {
        self.spec.dtype()
    }

    /// The first element. The cast is not checked: `T` must be what the dtype says.
    pub(crate) fn pointer<T>(&self) -> *mut T {
        self.pointer.0.cast()
    }

    /// Rows, all leading dimensions taken together.
    pub(crate) fn rows(&self) -> usize {
        self.spec.rows()
    }

    /// The element offset at which row `row` (counted over all leading dimensions, row-major) begins.
    pub(crate) fn row_offset(&self, row: usize) -> usize {
        let (mut row, mut offset, last) = (row, 0, self.spec.rank() - 1);
        for i in 1..last {
            let n = self.spec.dim(i).max(1);
            offset += row % n * self.spec.stride(i);
            row /= n;
        }
        // No division for the first dimension: most tensors are matrices.
        offset + if last > 0 { row * self.spec.stride(last) } else { 0 }
    }

    /// Element `column` of row `row`; in a quantized format, which must begin a block.
    pub(crate) fn at<T>(&self, row: usize, column: usize) -> *mut T {
        let (elements, bytes) = self.dtype().block();
        let element = self.row_offset(row) + column * self.spec.stride(0);
        // SAFETY: callers name existing elements, which lie inside the tensor's span (or its end, of an empty row).
        unsafe { self.pointer.0.add(element / elements * bytes).cast() }
    }

    /// Element `column` of row `row`, and the bytes from there to the next row of the same matrix; of a type that is not quantized.
    pub(crate) fn matrix(&self, row: usize, column: usize) -> (*mut u8, usize) {
        (self.at(row, column), self.spec.stride(1) * self.dtype().block().1)
    }

    /// The same memory with another shape and strides over no more than it.
    pub(crate) fn seen_as<'b>(&self, spec: &'b Spec) -> Tensor<'b> {
        Tensor { pointer: self.pointer, spec }
    }
}
