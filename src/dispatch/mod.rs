//! Choosing where an operation runs, and running it.
//!
//! An operation runs on the device that holds its operands, by the kernel that was measured fastest for its class there. The
//! choice is made once and remembered: later calls look it up, check the operands and launch. What no kernel there can run
//! goes to another device only where the caller allowed that, and is counted.

mod choose;
mod device;
mod elsewhere;
mod explain;
mod launch;
mod measure;
mod pool;
mod recording;
mod remember;
mod weight;

use std::{
    hash::{Hash, Hasher},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arrayvec::ArrayVec;
use rustc_hash::{FxHashMap, FxHasher};

pub use self::{
    device::Device,
    explain::{Candidate, Chosen, Declined, Explanation, How},
    launch::Launch,
    recording::Recording,
    weight::HostBytes,
};
pub(crate) use self::{
    elsewhere::copy,
    remember::default_directory,
    weight::{Source, Stored, missing},
};
#[cfg(feature = "bench")]
pub(crate) use self::{measure::contents, weight::pack};
use crate::{
    backend::View,
    error::{Error, Result},
    layout::Spec,
    op::{MAX_OPERANDS, Op, words},
};

words! {
    /// What happens to an operation that the device of its operands cannot run.
    Fallback {
        /// It fails, and the error says why.
        Forbidden = "forbidden",
        /// It runs on the next best device, operands and results being copied, and the report says so.
        Reported = "reported",
    }
}

/// Where operations ran: one row per operation, device, kernel and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The operation's name.
    pub op: &'static str,
    /// The device's id.
    pub device: String,
    /// The kernel.
    pub kernel: String,
    /// How often.
    pub launches: u64,
    /// Why it did not run where its operands were.
    pub fell_back: Option<String>,
}

/// An operand as the dispatcher gets it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arg<'a> {
    pub(crate) device: &'a Device,
    pub(crate) spec: &'a Spec,
    pub(crate) stored: &'a Stored,
}

/// The devices, and everything learnt about them.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    devices: Vec<Device>,
    fallback: Fallback,
    memory: remember::Memory,
    remembered: RwLock<Remembered>,
    /// Held while measuring: one measurement at a time.
    deciding: Mutex<choose::Verdicts>,
    packings: Mutex<Vec<&'static str>>,
    placed: Mutex<Vec<Placed>>,
}

#[derive(Debug, Default)]
struct Remembered {
    by_hash: FxHashMap<u64, Vec<Arc<Choice>>>,
    count: usize,
}

/// More choices than this are forgotten together: planning again takes microseconds.
const MOST_REMEMBERED: usize = 4096;

/// Counts for an operation too large to be measured, so that a device that was measured goes first.
pub(crate) const UNMEASURED: Duration = Duration::from_secs(3600);

/// A remembered decision.
#[derive(Debug)]
struct Choice {
    launch: Launch,
    device: Device,
    held: u128,
    forms: ArrayVec<Option<&'static str>, MAX_OPERANDS>,
    scratch: usize,
    launches: AtomicU64,
}

impl Dispatcher {
    pub(crate) fn new(devices: Vec<Device>, fallback: Fallback, cache: Option<&Path>) -> Dispatcher {
        Dispatcher {
            devices,
            fallback,
            memory: remember::Memory::open(cache),
            remembered: RwLock::default(),
            deciding: Mutex::default(),
            packings: Mutex::default(),
            placed: Mutex::default(),
        }
    }

    pub(crate) fn devices(&self) -> &[Device] {
        &self.devices
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.memory.warnings()
    }

    /// Runs the operation where its operands are, or elsewhere where that is allowed.
    pub(crate) fn run(&self, op: &Op, args: &[Arg]) -> Result<()> {
        let Some(first) = args.first() else { return Err(Error::invalid(op, "no operands given")) };
        if args.iter().any(|a| a.device != first.device) {
            let names: Vec<String> = args.iter().map(|a| a.device.info().id.clone()).collect();
            let why = format!("operands are on different devices: {}", names.join(", "));
            return match self.fallback {
                Fallback::Forbidden => {
                    Err(Error::invalid(op, why + "; move them with `to`, or allow Fallback::Reported"))
                }
                Fallback::Reported => self.run_elsewhere(op, args, why),
            };
        }
        match self.choice(op, first.device, args) {
            Ok(choice) => choice.run(args),
            Err(Error::Unsupported { why, .. }) if self.fallback == Fallback::Reported => {
                self.run_elsewhere(op, args, why)
            }
            Err(other) => Err(other),
        }
    }

    /// The remembered choice, or a new one.
    fn choice(&self, op: &Op, device: &Device, args: &[Arg]) -> Result<Arc<Choice>> {
        let held = held(args);
        let mut hasher = FxHasher::default();
        (op, device.index(), held).hash(&mut hasher);
        let hash = hasher.finish();
        let find = |all: &Remembered| {
            let list = all.by_hash.get(&hash)?;
            list.iter().find(|c| c.held == held && c.device == *device && c.launch.op() == op).cloned()
        };
        if let Some(choice) = find(&self.remembered.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(choice);
        }
        let choice = Arc::new(self.decide(op, device, args, held)?);
        let mut all = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = find(&all) {
            return Ok(other); // another thread was faster
        }
        if all.count >= MOST_REMEMBERED {
            let old = std::mem::take(&mut *all);
            old.by_hash.values().flatten().for_each(|c| self.count(c.placed()));
        }
        all.count += 1;
        all.by_hash.entry(hash).or_default().push(choice.clone());
        Ok(choice)
    }

    /// Where everything ran so far.
    pub(crate) fn report(&self) -> Vec<Placed> {
        let all = self.remembered.read().unwrap_or_else(PoisonError::into_inner);
        let mut rows = self.placed().clone();
        for choice in all.by_hash.values().flatten() {
            merge(&mut rows, choice.placed());
        }
        rows.retain(|r| r.launches > 0);
        rows.sort_by(|a, b| (a.op, &a.device, &a.kernel).cmp(&(b.op, &b.device, &b.kernel)));
        rows
    }

    fn count(&self, row: Placed) {
        merge(&mut self.placed(), row);
    }

    fn placed(&self) -> MutexGuard<'_, Vec<Placed>> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Choice {
    /// Checks and launches. Allocates nothing once the device's pool holds the scratch memory.
    fn run(&self, args: &[Arg]) -> Result<()> {
        let views = self.views(args)?;
        let scratch = if self.scratch > 0 { Some(self.device.pooled(self.scratch)?) } else { None };
        self.launch.run(&views, scratch.as_ref())?;
        self.count();
        Ok(())
    }

    /// The operands' bytes in the forms that the kernel reads.
    fn views(&self, args: &[Arg]) -> Result<ArrayVec<View, MAX_OPERANDS>> {
        let operands = self.launch.operands();
        if args.len() != operands.len() {
            return Err(Error::invalid(
                self.launch.op(),
                format_args!("{} operands given, needs {}", args.len(), operands.len()),
            ));
        }
        let mut views = ArrayVec::new();
        for (i, ((arg, operand), &form)) in args.iter().zip(operands).zip(&self.forms).enumerate() {
            if *arg.spec != operand.spec {
                return Err(Error::invalid(
                    self.launch.op(),
                    format_args!("{} is a tensor {}", operand.name, arg.spec),
                ));
            }
            views.push(match (arg.stored, form) {
                (Stored::Plain(view), None) => view.clone(),
                (Stored::Plain(_), wanted) => return Err(missing(arg.spec, wanted)),
                (Stored::Weight(weight), wanted) => weight.form_for(&self.launch, i, wanted)?,
            });
        }
        Ok(views)
    }

    fn count(&self) {
        self.launches.fetch_add(1, Ordering::Relaxed);
    }

    fn placed(&self) -> Placed {
        Placed {
            op: self.launch.op().name(),
            device: self.device.info().id.clone(),
            kernel: self.launch.plan().name().into(),
            launches: self.launches.load(Ordering::Relaxed),
            fell_back: None,
        }
    }
}

/// The forms in which weights are held, as part of a choice's key: for each its operand's place and its own key.
fn held(args: &[Arg]) -> u128 {
    args.iter().enumerate().fold(0, |all, (i, arg)| match arg.stored {
        Stored::Plain(_) => all,
        Stored::Weight(w) => all << 12 | ((i as u128) << 8 | w.key() as u128),
    })
}

fn merge(rows: &mut Vec<Placed>, row: Placed) {
    let same = |r: &&mut Placed| {
        (r.op, &r.device, &r.kernel, &r.fell_back) == (row.op, &row.device, &row.kernel, &row.fell_back)
    };
    match rows.iter_mut().find(same) {
        Some(known) => known.launches += row.launches,
        None => rows.push(row),
    }
}
