//! The one checked place: nothing is launched but through here.

use std::{ops::Range, sync::Arc};

use arrayvec::ArrayVec;

use crate::{
    backend::{Plan, Token, View},
    error::{Error, Result},
    layout::Spec,
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
    /// Pairs an operation with a plan that the device `token` made for it.
    pub fn new(op: &Op, plan: Arc<dyn Plan>, token: Token) -> Result<Launch> {
        op.validate()?;
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
        let fail = |why: &str| Err(Error::invalid(&self.op, format_args!("packing operand {operand}: {why}")));
        let (Some(packing), Some(o)) = (self.plan.packing(operand), self.operands.get(operand)) else {
            return fail("the kernel reads it plain");
        };
        let total = o.spec.rows();
        if rows.start > rows.end || rows.end > total {
            return fail("rows out of range");
        }
        let whole = |r: usize| r == total || r % packing.rows.max(1) == 0;
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

    fn check(&self, args: &[View], scratch: Option<&View>) -> Result<()> {
        let fail = |why: std::fmt::Arguments<'_>| Err(Error::invalid(&self.op, why));
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

/// True where two tensors in the same buffer provably share no byte although their ranges overlap: columns of rows with the same pitch
/// (slices of a fused q|k|v row, say).
fn interleave(a_offset: usize, a: &Spec, b_offset: usize, b: &Spec) -> bool {
    // Bytes between consecutive rows and bytes of one row, where all outer dimensions step by whole rows.
    let rows = |s: &Spec| {
        let (elements, bytes) = s.dtype().block();
        let scale = |n: usize| n / elements * bytes;
        let mut dims: ArrayVec<(usize, usize), 6> =
            s.strides().iter().zip(s.shape()).filter(|d| *d.1 > 1).map(|d| (*d.0, *d.1)).collect();
        dims.sort_unstable_by(|x, y| y.cmp(x));
        let (pitch, _) = *dims.first()?;
        // The width of one row: everything but the dimensions that step by multiples of the pitch.
        let width = dims.iter().filter(|d| d.0 < pitch).map(|d| d.0 * (d.1 - 1)).sum::<usize>() + elements.max(1);
        Some((scale(pitch), scale(width)))
    };
    let (Some((pitch, width_a)), Some((pitch_b, width_b))) = (rows(a), rows(b)) else { return false };
    if pitch != pitch_b || pitch == 0 || width_a > pitch || width_b > pitch {
        return false;
    }
    let (at_a, at_b) = (a_offset % pitch, b_offset % pitch);
    // Neither may wrap past its row's end, seen from the other's start.
    let distance = (at_b + pitch - at_a) % pitch;
    distance >= width_a && distance + width_b <= pitch
}
