//! The one checked place: nothing is launched but through here.

use std::{ops::Range, sync::Arc};

use arrayvec::ArrayVec;

use crate::{
    backend::{Plan, Token, View},
    error::{Error, Result},
    layout::{MAX_RANK, Spec},
    op::{MAX_OPERANDS, Op, Operand, Operands},
};

/// An operation with the plan that runs it: what is remembered, and launched again and again.
#[derive(Debug, Clone)]
pub struct Launch {
    op: Op,
    operands: Operands,
    packed: ArrayVec<Option<usize>, MAX_OPERANDS>, // bytes of each operand the plan wants packed
    token: Token,
    plan: Arc<dyn Plan>,
}

impl Launch {
    /// Pairs an operation with a plan that the device `token` made for it. A plan for any other operation is refused: its kernel would
    /// reach beyond the operands.
    pub fn new(op: &Op, plan: Arc<dyn Plan>, token: Token) -> Result<Launch> {
        op.validate()?;
        if plan.op() != *op {
            return Err(Error::invalid(op, format_args!("the kernel {} was made for {}", plan.name(), plan.op())));
        }
        let operands = op.operands();
        let packed = (0..operands.len()).map(|i| plan.packing(i).map(|p| p.bytes)).collect();
        Ok(Launch { op: *op, operands, packed, token, plan })
    }

    /// The operation.
    pub fn op(&self) -> &Op {
        &self.op
    }

    /// The operation's operands, in the order of `run`'s arguments.
    pub fn operands(&self) -> &[Operand] {
        &self.operands
    }

    /// The kernel.
    pub fn plan(&self) -> &Arc<dyn Plan> {
        &self.plan
    }

    /// The device that runs it.
    pub fn token(&self) -> Token {
        self.token
    }

    /// Checks number, order, size, device and aliasing of the operands, and enqueues the kernel. Allocates nothing.
    pub fn run(&self, args: &[View], scratch: Option<&View>) -> Result<()> {
        self.check(args, scratch)?;
        // SAFETY: `check` established each of launch's conditions.
        unsafe { self.plan.launch(args, scratch) }
    }

    /// Repacks rows of a weight operand from their plain form. See [`Plan::pack`].
    pub fn pack(&self, operand: usize, rows: Range<usize>, plain: &View, packed: &View) -> Result<()> {
        let fail = |why: &str| Err(Error::invalid(self.op, format_args!("packing operand {operand}: {why}")));
        let (Some(packing), Some(o)) = (self.plan.packing(operand), self.operands.get(operand)) else {
            return fail("the kernel reads it plain");
        };
        let total = o.spec.rows();
        if rows.start > rows.end || rows.end > total {
            return fail("rows out of range");
        }
        let whole = |r: usize| r == total || r.is_multiple_of(packing.rows.max(1));
        if !whole(rows.start) || !whole(rows.end) {
            return fail(&format!("rows must be multiples of {}", packing.rows));
        }
        let expected = o.spec.dtype().bytes(rows.len() * o.spec.dim(0));
        if expected != Some(plain.len()) || packed.len() != packing.bytes {
            return fail("sizes of the plain or the packed view are wrong");
        }
        if plain.token() != self.token || packed.token() != self.token || packed.buffer().read_only() {
            return fail("both views must be of the plan's device, the packed one writable");
        }
        if plain.overlaps(packed) {
            return fail("the views overlap");
        }
        // SAFETY: device, sizes and overlap were just checked.
        unsafe { self.plan.pack(operand, rows, plain, packed) }
    }

    pub(super) fn check(&self, args: &[View], scratch: Option<&View>) -> Result<()> {
        let fail = |why: std::fmt::Arguments<'_>| Err(Error::invalid(self.op, why));
        if args.len() != self.operands.len() {
            let names: Vec<&str> = self.operands.iter().map(|o| o.name).collect();
            return fail(format_args!("{} operands given, needs {}: {}", args.len(), names.len(), names.join(", ")));
        }
        for (i, (arg, o)) in args.iter().zip(&self.operands).enumerate() {
            if arg.token() != self.token {
                return fail(format_args!("{} is on another device than the kernel", o.name));
            }
            match self.packed[i] {
                Some(bytes) if arg.len() != bytes => {
                    return fail(format_args!(
                        "{} must be the packed weight of {bytes} bytes, has {}",
                        o.name,
                        arg.len()
                    ));
                }
                None if arg.len() < o.spec.span() => {
                    return fail(format_args!("{} needs {} bytes, has {}", o.name, o.spec.span(), arg.len()));
                }
                _ => {}
            }
            let (elements, bytes) = o.spec.dtype().block();
            if elements == 1 && arg.offset() % bytes != 0 {
                return fail(format_args!("{} begins at byte {}, not a multiple of {bytes}", o.name, arg.offset()));
            }
            if o.role.writes() && arg.buffer().read_only() {
                return fail(format_args!("{} is written, and its memory is read-only", o.name));
            }
        }
        for (i, written) in self.operands.iter().enumerate().filter(|(_, o)| o.role.writes()) {
            for (j, other) in self.operands.iter().enumerate() {
                if i != j && self.collide(&args[i], written, &args[j], other) {
                    return fail(format_args!("{} is written and overlaps {}", written.name, other.name));
                }
            }
        }
        match (self.plan.scratch(), scratch) {
            (0, _) => Ok(()),
            (need, Some(s)) if s.len() >= need && s.token() == self.token && s.offset() % 64 == 0 => {
                if args.iter().any(|a| a.overlaps(s)) {
                    return fail(format_args!("scratch memory overlaps an operand"));
                }
                Ok(())
            }
            (need, _) => fail(format_args!("needs {need} bytes of scratch memory on its device, 64-byte aligned")),
        }
    }

    fn collide(&self, a: &View, written: &Operand, b: &View, other: &Operand) -> bool {
        // Only the bytes that the specs name matter, not all that a longer view covers.
        let near = |v: &View, o: &Operand| v.slice(0, o.spec.span().min(v.len())).ok();
        let (Some(va), Some(vb)) = (near(a, written), near(b, other)) else { return true };
        if !va.overlaps(&vb) {
            return false;
        }
        let same = va.offset() == vb.offset() && written.spec == other.spec;
        if same && !other.role.writes() && self.op.may_alias(written.name, other.name) {
            return false;
        }
        !interleave(va.offset(), &written.spec, vb.offset(), &other.spec)
    }
}

/// True where two tensors in the same buffer provably share no byte although their ranges overlap: columns of rows with a
/// common pitch. Slices of a fused q|k|v row are such, however the rows are dimensioned:
///
/// ```text
///     pitch  |<------------------------->|
///     row 0  | q q q q | k k | v v |     |
///     row 1  | q q q q | k k | v v |     |
/// ```
///
/// Any stride of either may be the pitch: dimensions that step by multiples of it name rows, the others lie within one.
fn interleave(a_offset: usize, a: &Spec, b_offset: usize, b: &Spec) -> bool {
    let (a, b) = (Steps::of(a), Steps::of(b));
    a.dims.iter().chain(&b.dims).any(|&(pitch, _)| {
        let (Some(a_width), Some(b_width)) = (a.width(pitch), b.width(pitch)) else { return false };
        // Where b's columns begin, seen from a's; neither may reach the other's beginning, around the row's end.
        let distance = (b_offset % pitch + pitch - a_offset % pitch) % pitch;
        a_width <= distance && b_width <= pitch - distance
    })
}

/// A tensor's strides and extents in bytes, extents of 1 left out.
struct Steps {
    dims: ArrayVec<(usize, usize), MAX_RANK>,
    item: usize,
}

impl Steps {
    fn of(spec: &Spec) -> Steps {
        let (elements, bytes) = spec.dtype().block();
        let rank = spec.rank();
        let dims = (0..rank).map(|i| match (spec.strides()[i], spec.shape()[i]) {
            // Along a quantized row the blocks are what steps.
            (_, n) if i == rank - 1 && elements > 1 => (bytes, n / elements),
            (stride, n) => (stride / elements * bytes, n),
        });
        Steps { dims: dims.filter(|d| d.0 > 0 && d.1 > 1).collect(), item: bytes }
    }

    /// Bytes of a row that the tensor reaches, where rows lie `pitch` apart.
    fn width(&self, pitch: usize) -> Option<usize> {
        let inner = self.dims.iter().filter(|d| d.0 % pitch != 0);
        inner.map(|d| d.0.checked_mul(d.1 - 1)).try_fold(self.item, |sum, reach| sum.checked_add(reach?))
    }
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
