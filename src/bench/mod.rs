//! Measuring: suites of operations at the models' sizes, every kernel of every device, each result checked.
//!
//! One [`Record`] per operation, device and kernel; everything a dashboard reads is a projection of records.

mod check;
mod measure;
mod page;
mod peers;
mod record;
mod rival;
mod suite;
mod write;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub use measure::{measure, measure_beside};
pub use page::page;
pub use peers::{peer_summary, peer_tables};
pub use record::{
    Code, Conditions, Correctness, Derived, Identity, Limits, Peer, Placement, Record, SCHEMA, Samples, Where,
};
pub use rival::{LeftOut, Rival};
pub use suite::{Suite, ops};
pub use write::{Format, rate, share, time};

use crate::{
    backend::{Backend, Kind},
    dispatch::Device,
    error::{Error, Result},
    op::Op,
};

/// What to measure, and how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which operations.
    pub suite: Suite,
    /// Words that must all occur in an operation's text; or an operation's text, which need not be in the suite.
    pub filter: Option<String>,
    /// Time spent on each operation and device.
    pub budget: Duration,
    /// Time for all of them, after which the rest is left out.
    pub limit: Duration,
    /// How many of a device's kernels at most, the likely fastest first.
    pub kernels: usize,
    /// Bytes of weights that are rotated through, so that they come from memory and not from a cache.
    pub weights: usize,
    /// Which random numbers.
    pub seed: u64,
    /// What measures kernels of a processor instead of the time of day: the process's own time, say, where others use the machine too.
    pub clock: Option<fn() -> Duration>,
}

impl Options {
    /// The usual ones for a suite.
    pub fn new(suite: Suite) -> Options {
        let quick = suite == Suite::Quick;
        Options {
            suite,
            filter: None,
            budget: Duration::from_millis(if quick { 150 } else { 1000 }),
            limit: Duration::MAX,
            kernels: if suite == Suite::Large { 1 } else { usize::MAX },
            weights: if quick { 128 << 20 } else { 768 << 20 },
            seed: 0,
            clock: None,
        }
    }

    /// The operations chosen.
    pub fn ops(&self) -> Result<Vec<Op>> {
        let filter = self.filter.as_deref().unwrap_or_default();
        if let Ok(op) = filter.parse::<Op>() {
            op.validate()?;
            return Ok(vec![op]);
        }
        let all = ops(self.suite);
        let chosen: Vec<Op> =
            all.into_iter().filter(|op| filter.split_ascii_whitespace().all(|w| op.to_string().contains(w))).collect();
        if chosen.is_empty() {
            return Err(Error::invalid(
                filter,
                format_args!("no operation of suite {} has all these words", self.suite),
            ));
        }
        Ok(chosen)
    }
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Results {
    /// What was measured.
    pub records: Vec<Record>,
    /// What was not: device, operation, reason.
    pub left_out: Vec<(String, Op, String)>,
}

impl Results {
    /// True where every result was right.
    pub fn passed(&self) -> bool {
        self.records.iter().all(|r| r.correctness.checked && r.correctness.why.is_empty())
    }
}

/// Measures the operations on each device. `progress` is told what is being measured, how many are done of how many, and what came of
/// those: results that are kept as they come survive an end before the last.
pub fn run(
    devices: &[Arc<dyn Backend>],
    options: &Options,
    progress: &mut dyn FnMut(&str, usize, usize, &Results),
) -> Result<Results> {
    let ops = options.ops()?;
    let (mut results, total, start) = (Results::default(), ops.len() * devices.len(), Instant::now());
    for (d, backend) in devices.iter().enumerate() {
        let device = Device::new(d, backend.clone(), true);
        let code = Code::of_this_build();
        for (i, op) in ops.iter().enumerate() {
            progress(&format!("{} {}", device.info().backend, op.name()), d * ops.len() + i, total, &results);
            if start.elapsed() >= options.limit {
                results.left_out.push((device.info().id.clone(), *op, "the time was up".into()));
                continue;
            }
            // The oracle is no competitor: it is timed where that takes moments.
            if device.info().kind == Kind::Reference && op.cost().flops.max(op.cost().bytes) > 2_000_000 {
                let why = "too large for the reference".to_string();
                results.left_out.push((device.info().id.clone(), *op, why));
                continue;
            }
            match measure(&device, op, options, &code) {
                Ok(records) => results.records.extend(records),
                Err(Error::Unsupported { why, .. }) => results.left_out.push((device.info().id.clone(), *op, why)),
                Err(Error::OutOfMemory { .. }) => {
                    results.left_out.push((device.info().id.clone(), *op, "out of memory".into()));
                }
                Err(other) => return Err(other),
            }
            device.trim();
        }
    }
    progress("done", total, total, &results);
    Ok(results)
}
