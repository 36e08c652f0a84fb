//! Running one case on one kernel: operands between guards, outputs poisoned, the launch checked, everything compared.

use std::sync::Arc;

use super::{
    case::Case,
    compare::{Stats, compare},
};
use crate::{
    backend::{Backend, Plan, Plans, View},
    dispatch::Launch,
    error::{Error, Result},
    layout::Spec,
    op::{Array, Arrays, Determinism, Fill, Op, Operands, Role},
};

/// Bytes before and behind every operand and the scratch memory; they must come back as they were.
const GUARD: usize = 256;
/// Round what is written: a small number in every float type, so that it does not pass for a right NaN.
const SMALL: u8 = 0xa5;
/// Round what is read: NaN in every float type, so that reading too far shows.
pub(super) const NAN: u8 = 0xff;

/// A case's numbers: what every kernel is given, and what it must answer.
pub struct Prepared {
    case: Case,
    operands: Operands,
    /// The bytes of each operand before the launch, gaps between rows included.
    bytes: Vec<Vec<u8>>,
    /// Inputs as the device sees them, outputs as the reference computes them.
    expected: Arrays,
}

impl Prepared {
    /// Fills the operands and asks the reference.
    pub fn new(case: &Case) -> Result<Prepared> {
        case.op.validate()?;
        let (mut rng, operands) = (case.rng(), case.op.operands());
        let (mut bytes, mut expected) = (Vec::new(), Arrays::default());
        for o in &operands {
            // Gaps between rows, and outputs before they are written.
            let poison = if o.role.writes() && case.fill == Fill::Special { SMALL } else { NAN };
            let mut raw = vec![poison; o.spec.span()];
            let mut array = Array::zeros(o.spec);
            if o.role != Role::Out {
                let special = o.spec.dtype().is_quantized() && case.fill == Fill::Special;
                let fill = if special { Fill::Normal } else { case.fill }; // blocks hold no infinities
                array.data = case.op.fill(o, fill, &mut rng);
                array.encode(None, &mut raw)?;
                array = Array::decode(o.spec, &raw)?; // what the device sees: rounded, and repeated where a stride is 0
            }
            expected.push(o.name, array);
            bytes.push(raw);
        }
        case.op.reference(&mut expected)?;
        Ok(Prepared { case: *case, operands, bytes, expected })
    }

    /// Runs the case on one of the device's kernels. The statistics are those of the worst output.
    pub fn run(&self, device: &dyn Backend, plan: &Arc<dyn Plan>) -> (Stats, Result<(), String>) {
        let mut stats = Stats::default();
        let verdict = self.try_run(device, plan, &mut stats).unwrap_or_else(|e| Err(e.to_string()));
        (stats, verdict)
    }

    fn try_run(&self, device: &dyn Backend, plan: &Arc<dyn Plan>, stats: &mut Stats) -> Result<Result<(), String>> {
        let asked = self.case.op.determinism();
        if plan.determinism() < asked {
            return Ok(Err(format!("promises {} where {asked} was asked for", plan.determinism())));
        }
        for (i, o) in self.operands.iter().enumerate() {
            let (packing, plain) = (plan.packing(i), o.spec.bytes());
            if let Some(p) = packing.filter(|p| o.spec.rows() >= 64 && p.bytes as f64 > plain as f64 * 1.05) {
                return Ok(Err(format!("{}: packed form {} takes {} bytes for {plain}", o.name, p.name, p.bytes)));
            }
        }
        let stage = self.place(device, plan)?;
        stage.launch()?;
        let first = match self.outputs(device, &stage)? {
            Ok(outputs) => outputs,
            Err(why) => return Ok(Err(why)),
        };
        for (i, got) in &first {
            let (s, verdict) = compare(&self.case.op, &self.operands[*i], &self.expected, &self.bytes[*i], got)?;
            stats.merge(s);
            if verdict.is_err() {
                return Ok(verdict);
            }
        }
        // Again, over what the first run left in the scratch memory.
        for (i, _) in &first {
            device.write(&stage.args[*i], &self.bytes[*i])?;
        }
        stage.launch()?;
        Ok(self.outputs(device, &stage)?.and_then(|second| {
            let same = second == first || plan.determinism() == Determinism::Any;
            if same { Ok(()) } else { Err("a second run gives other bits".into()) }
        }))
    }

    /// Judges an output's bytes, where the operation has one output.
    pub(super) fn judge(&self, got: &[u8]) -> Result<(), String> {
        let Some(i) = self.operands.iter().position(|o| o.role.writes()) else { return Ok(()) };
        let compared = compare(&self.case.op, &self.operands[i], &self.expected, &self.bytes[i], got);
        compared.map_err(|e| e.to_string())?.1
    }

    /// The same with the first rows of another case's inputs. What is expected is not computed again.
    pub(super) fn with_inputs_of(mut self, other: &Prepared) -> Prepared {
        for (own, others) in self.bytes.iter_mut().zip(&other.bytes) {
            let len = own.len();
            own.copy_from_slice(&others[..len]);
        }
        self
    }

    /// Puts the operands on the device, weights packed as the kernel wants them.
    pub(super) fn place(&self, device: &dyn Backend, plan: &Arc<dyn Plan>) -> Result<Stage> {
        let launch = Launch::new(&self.case.op, plan.clone(), device.token())?;
        let mut placed = Vec::new();
        for (i, (o, bytes)) in self.operands.iter().zip(&self.bytes).enumerate() {
            placed.push(match plan.packing(i) {
                Some(packing) => {
                    let place = Place::new(device, &vec![NAN; packing.bytes], 0, NAN)?;
                    self.pack(device, &launch, i, packing.rows, &place.view)?;
                    place
                }
                None => {
                    // Half of the operands begin an element or a block beyond any natural boundary.
                    let shift = if self.case.rng().below(2) == i % 2 { o.spec.dtype().block().1 } else { 0 };
                    Place::new(device, bytes, shift, if o.role.writes() { SMALL } else { NAN })?
                }
            });
        }
        let args = placed.iter().map(|p| p.view.clone()).collect();
        let scratch = Some(plan.scratch()).filter(|&n| n > 0);
        let scratch = scratch.map(|n| Place::new(device, &vec![NAN; n], 0, SMALL)).transpose()?;
        Ok(Stage { launch, placed, args, scratch })
    }

    /// Packs a weight in two parts, the second part first.
    fn pack(&self, device: &dyn Backend, launch: &Launch, operand: usize, step: usize, packed: &View) -> Result<()> {
        let plain = dense(&self.operands[operand].spec, &self.bytes[operand]);
        let rows = self.operands[operand].spec.rows();
        let row = plain.len() / rows.max(1);
        let middle = (rows / 2).next_multiple_of(step.max(1)).min(rows);
        for range in [middle..rows, 0..middle] {
            let part = &plain[range.start * row..range.end * row];
            let view = View::whole(device.alloc(part.len())?);
            device.write(&view, part)?;
            launch.pack(operand, range, &view, packed)?;
        }
        Ok(())
    }

    /// Reads everything back: the outputs, by operand, or what happened to memory that was not to be touched.
    pub(super) fn outputs(&self, device: &dyn Backend, stage: &Stage) -> Result<Result<Outputs, String>> {
        let mut outputs = Vec::new();
        for (i, o) in self.operands.iter().enumerate() {
            let (got, before) = (stage.placed[i].read(device)?, &self.bytes[i]);
            let got = match got {
                Ok(got) => got,
                Err(why) => return Ok(Err(format!("{}: {why}", o.name))),
            };
            if o.role.writes() {
                if let Some(at) = first_gap_changed(&o.spec, before, &got) {
                    return Ok(Err(format!("{}: byte {at}, in a gap between rows, was changed", o.name)));
                }
                outputs.push((i, got));
            } else if stage.launch.plan().packing(i).is_none() && got != *before {
                return Ok(Err(format!("{} is an input and was changed", o.name)));
            }
        }
        match stage.scratch.as_ref().map(|s| s.read(device)).transpose()? {
            Some(Err(why)) => Ok(Err(format!("scratch memory: {why}"))),
            _ => Ok(Ok(outputs)),
        }
    }
}

/// The bytes of each written operand, with its position.
pub(super) type Outputs = Vec<(usize, Vec<u8>)>;

/// A case on a device, ready to be launched.
pub(super) struct Stage {
    pub launch: Launch,
    placed: Vec<Place>,
    pub args: Vec<View>,
    scratch: Option<Place>,
}

impl Stage {
    pub fn launch(&self) -> Result<()> {
        self.launch_on(&self.args)
    }

    /// With other operands in place of the case's.
    pub fn launch_on(&self, args: &[View]) -> Result<()> {
        self.launch.run(args, self.scratch.as_ref().map(|s| &s.view))
    }
}

/// Every kernel the device has for the operation, or why it has none.
pub fn plans(device: &dyn Backend, op: &Op) -> Result<Result<Plans, String>> {
    match device.plan(op) {
        Ok(plans) if plans.is_empty() => Err(Error::device(device.info(), "plan", "an empty list: decline instead")),
        Ok(plans) => Ok(Ok(plans)),
        Err(Error::Unsupported { why, .. }) => Ok(Err(why)),
        Err(other) => Err(other),
    }
}

/// The elements' bytes in row-major order, without gaps.
fn dense(spec: &Spec, bytes: &[u8]) -> Vec<u8> {
    let (_, size) = spec.dtype().block();
    spec.offsets().flat_map(|at| &bytes[at..at + size]).copied().collect()
}

/// The first byte that belongs to no element and changed.
fn first_gap_changed(spec: &Spec, before: &[u8], after: &[u8]) -> Option<usize> {
    if spec.is_dense() {
        return None;
    }
    let (_, size) = spec.dtype().block();
    let mut element = vec![false; before.len()];
    for at in spec.offsets() {
        element[at..at + size].fill(true);
    }
    (0..before.len()).find(|&i| !element[i] && before[i] != after[i])
}

/// Device memory with guards around it.
struct Place {
    whole: View,
    view: View,
    guard: u8,
}

impl Place {
    /// Memory that holds `bytes`, beginning `shift` bytes beyond a multiple of the alignment.
    fn new(device: &dyn Backend, bytes: &[u8], shift: usize, guard: u8) -> Result<Place> {
        let size = GUARD + shift + bytes.len() + GUARD;
        let mut all = vec![guard; size];
        all[GUARD + shift..][..bytes.len()].copy_from_slice(bytes);
        let whole = View::whole(device.alloc(size)?);
        device.write(&whole, &all)?;
        let view = whole.slice(GUARD + shift, bytes.len())?;
        Ok(Place { whole, view, guard })
    }

    /// What lies between the guards, or what happened to them.
    fn read(&self, device: &dyn Backend) -> Result<Result<Vec<u8>, String>> {
        let mut all = vec![0; self.whole.len()];
        device.read(&self.whole, &mut all)?;
        let (start, end) = (self.view.offset() - self.whole.offset(), self.view.len());
        let outside = |i: &usize| !(start..start + end).contains(i);
        if let Some(i) = (0..all.len()).filter(outside).find(|&i| all[i] != self.guard) {
            let at = i as isize - start as isize;
            return Ok(Err(format!("memory outside was written, at byte {at} of {end}")));
        }
        Ok(Ok(all[start..start + end].to_vec()))
    }
}
