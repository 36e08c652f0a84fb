//! Operations on tensors larger than a binding holds (128 MiB where a device grants no more than WebGPU promises), as several on parts.
//!
//! A product is cut by its columns, which are rows of its weight, and by its rows; a table by its rows, of which each part gathers its own; what
//! works element by element by any dimension. The parts are launched one after the other, as if the caller had. Other operations are declined.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::{adapter::Abilities, gather, shader::Kernel};
use crate::{
    backend::{Plan, Plans, View},
    error::{Error, Result},
    layout::{MAX_RANK, Spec},
    op::{Convert, Determinism, Elementwise, MAX_OPERANDS, Op},
};

/// Where a part's operands begin, in bytes.
type Begins = ArrayVec<usize, MAX_OPERANDS>;

/// An operation on a part of the operands of another.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) op: Op,
    begins: Begins,
    /// The row of the whole table that the part's begins with.
    first: usize,
}

impl Part {
    /// Its kernels, as a part of the operation `whole`.
    pub(super) fn kernels(&self, whole: &Op, able: &Abilities) -> Result<Vec<Kernel>> {
        let (Op::Gather(o), Op::Gather(whole)) = (&self.op, whole) else { return super::kernels(&self.op, able) };
        let mut kernel = gather::kernel(&self.op, o, self.first, whole.table.dim(1))?;
        kernel.enable(able);
        Ok(vec![kernel])
    }
}

/// A dimension along which an operation can be cut.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Along {
    /// Columns of a product's result.
    Columns,
    /// Its rows; those of what is gathered.
    Rows,
    /// Rows of a table.
    Table,
    /// A dimension of a result, counted from the last.
    Dimension(usize),
}

const DIMENSIONS: [Along; MAX_RANK] = {
    use Along::Dimension;
    [Dimension(5), Dimension(4), Dimension(3), Dimension(2), Dimension(1), Dimension(0)]
};

impl Along {
    fn all(op: &Op) -> &'static [Along] {
        match op {
            Op::Matmul(o) if o.out.rank() == 2 => &[Along::Columns, Along::Rows],
            Op::Gather(_) => &[Along::Table, Along::Rows],
            Op::Elementwise(Elementwise { out, .. }) | Op::Convert(Convert { out, .. }) => {
                &DIMENSIONS[MAX_RANK - out.rank()..]
            }
            _ => &[],
        }
    }

    /// How long it is, and of what its cuts are multiples.
    fn extent(self, op: &Op) -> (usize, usize) {
        let operands = op.operands();
        let dim = |name: &str, i: usize| operands.iter().find(|o| o.name == name).map_or(0, |o| o.spec.dim(i));
        match self {
            // A block of scales serves 128 rows of a weight.
            Along::Columns => {
                let blocks = operands.iter().any(|o| o.name == "w_scale" && o.spec.rank() == 2);
                (dim("out", 0), if blocks { 128 } else { 1 })
            }
            Along::Rows => (dim("out", 1), 1),
            Along::Table => (dim("table", 1), 1),
            // Along the last one lie blocks.
            Along::Dimension(0) => {
                (dim("out", 0), operands.iter().map(|o| o.spec.dtype().block().0).max().unwrap_or(1))
            }
            Along::Dimension(i) => (dim("out", i), 1),
        }
    }

    /// Which dimension of an operand it is, counted from the last.
    fn of(self, name: &str, spec: &Spec) -> Option<usize> {
        match (self, name) {
            (Along::Columns, "w" | "up") => Some(1),
            (Along::Columns, "out" | "residual" | "bias") => Some(0),
            (Along::Columns, "w_scale") if spec.rank() == 2 => Some(1),
            (Along::Columns, "w_scale") if spec.dim(0) > 1 => Some(0),
            (Along::Rows, "x" | "out" | "residual") => Some(1),
            (Along::Rows, "x_scale" | "index") => Some(0),
            (Along::Table, "table") => Some(1),
            // Operands broadcast, aligned at their last dimension: what lacks it is whole in every part.
            (Along::Dimension(i), _) if spec.dim(i) > 1 => Some(i),
            _ => None,
        }
    }
}

/// By how many bytes operands span more than `most`.
fn excess(op: &Op, most: usize) -> usize {
    op.operands().iter().map(|o| o.spec.span().saturating_sub(most)).fold(0, usize::saturating_add)
}

/// The operation on `len` from `from` on.
fn part(op: &Op, along: Along, from: usize, len: usize) -> Result<Part> {
    let (mut op, mut begins, mut failed) = (*op, Begins::new(), None);
    op.each_spec(&mut |name, spec| {
        let Some(dim) = along.of(name, spec) else {
            begins.push(0);
            return;
        };
        // A block of scales serves 128.
        let per = if name == "w_scale" && spec.rank() == 2 { 128 } else { 1 };
        let (elements, bytes) = spec.dtype().block();
        begins.push(from / per * spec.stride(dim) / elements * bytes);
        let mut shape: ArrayVec<usize, MAX_RANK> = spec.shape().iter().copied().collect();
        let index = shape.len() - 1 - dim;
        shape[index] = len.div_ceil(per);
        match Spec::strided(spec.dtype(), &shape, spec.strides()) {
            Ok(cut) => *spec = cut,
            Err(e) => failed = Some(e),
        }
    });
    let first = if along == Along::Table { from } else { 0 };
    failed.map_or(Ok(Part { op, begins, first }), Err)
}

/// What to launch instead where operands span more than `most` bytes; empty where none does, or no cut helps.
pub(super) fn of(op: &Op, most: usize) -> Result<Vec<Part>> {
    let mut left = excess(op, most);
    if left == 0 {
        return Ok(Vec::new());
    }
    // Halve, one dimension at a time, whichever helps most.
    let axes = Along::all(op);
    let mut lens: ArrayVec<usize, MAX_RANK> = axes.iter().map(|a| a.extent(op).0).collect();
    let cut = |lens: &[usize]| axes.iter().zip(lens).try_fold(*op, |op, (&a, &len)| Ok(part(&op, a, 0, len)?.op));
    while left > 0 {
        let mut best = (left, 0, 0);
        for (i, along) in axes.iter().enumerate() {
            let (before, len) = (lens[i], lens[i].div_ceil(2).next_multiple_of(along.extent(op).1));
            let mut halved = lens.clone();
            halved[i] = len;
            if 0 < len && len < before {
                best = best.min((excess(&cut(&halved)?, most), i, len));
            }
        }
        if best.2 == 0 {
            return Ok(Vec::new());
        }
        (left, lens[best.1]) = (best.0, best.2);
    }
    let mut all = vec![Part { op: *op, begins: op.operands().iter().map(|_| 0).collect(), first: 0 }];
    for (&along, &len) in axes.iter().zip(&lens) {
        let mut next = Vec::new();
        for whole in &all {
            let extent = along.extent(&whole.op).0;
            for from in (0..extent.max(1)).step_by(len.max(1)) {
                let mut cut = part(&whole.op, along, from, len.min(extent - from))?;
                cut.begins.iter_mut().zip(&whole.begins).for_each(|(b, before)| *b += before);
                cut.first += whole.first;
                next.push(cut);
            }
        }
        all = next;
    }
    Ok(all)
}

/// One kernel for all parts.
#[derive(Debug)]
pub(super) struct Parts {
    op: Op,
    plans: Vec<(Arc<dyn Plan>, Begins)>,
}

impl Parts {
    /// For each kernel of the first part, one that runs all: with the same kernels where the others have them.
    pub(super) fn plans(op: &Op, parts: Vec<Part>, plan: impl Fn(&Part) -> Result<Plans>) -> Result<Plans> {
        let of: Vec<(Plans, Begins)> = parts.into_iter().map(|p| Ok((plan(&p)?, p.begins))).collect::<Result<_>>()?;
        let firsts: Plans = of.first().map(|(plans, _)| plans.clone()).unwrap_or_default();
        let like = |first: &Arc<dyn Plan>| {
            let plans = of.iter().map(|(plans, begins)| {
                let same = plans.iter().find(|p| p.name() == first.name()).or(plans.first());
                let none = || Error::unsupported(op, "a part of it has no kernel");
                Ok((same.ok_or_else(none)?.clone(), begins.clone()))
            });
            Ok(Arc::new(Parts { op: *op, plans: plans.collect::<Result<_>>()? }) as Arc<dyn Plan>)
        };
        firsts.iter().map(like).collect()
    }
}

impl Plan for Parts {
    fn name(&self) -> &str {
        self.plans[0].0.name()
    }

    fn op(&self) -> Op {
        self.op
    }

    fn scratch(&self) -> usize {
        self.plans.iter().map(|(p, _)| p.scratch()).max().unwrap_or(0)
    }

    fn determinism(&self) -> Determinism {
        self.plans[0].0.determinism()
    }

    unsafe fn launch(&self, args: &[View], scratch: Option<&View>) -> Result<()> {
        for (plan, begins) in &self.plans {
            let (op, mut views) = (plan.op(), ArrayVec::<View, MAX_OPERANDS>::new());
            for ((view, &begin), o) in args.iter().zip(begins).zip(op.operands().iter()) {
                views.push(view.slice(begin, o.spec.span())?);
            }
            // SAFETY: the parts' operands lie in the whole ones, of which the caller promises all that a launch asks for; a part's results lie
            // apart from all that later parts read, save where they may be the same.
            unsafe { plan.launch(&views, scratch.filter(|_| plan.scratch() > 0)) }?;
        }
        Ok(())
    }
}
