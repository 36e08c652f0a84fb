//! The conformance kit: does a device do what the contract and the operations say?
//!
//! A vendor writes one test, `conformance::check(&*open()?).assert()`. The same cases run every built-in device, and the
//! same cases are timed by the bench. The bounds are the operations' own; nothing here knows a backend's name.

mod blocks;
mod case;
mod certificate;
mod compare;
mod contract;
mod run;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use serde::Serialize;

pub use case::{Case, cases, dtypes, level};
#[cfg(feature = "bench")]
pub(crate) use case::{fnv1a, rewrite};
pub use compare::Stats;
pub use run::{Prepared, plans};

use crate::{
    backend::{Backend, DeviceInfo},
    error::Result,
    op::{Fill, Op, Rng, words},
};

words! {
    /// A part of the suite.
    Level {
        /// Dense arithmetic, data movement and the contract itself.
        Core = "core",
        /// Block-quantized weights.
        Quant = "quant",
        /// Attention, rotary positions, caches.
        Attention = "attention",
        /// State-space scans and their short convolution.
        Ssm = "ssm",
        /// Reproducibility beyond run to run.
        Determinism = "determinism",
    }
}

/// What to check, and for how long.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Levels to run; empty is all.
    pub levels: Vec<Level>,
    /// Words that must all occur in a case's text; or the text of an operation, or of one case.
    pub filter: Option<String>,
    /// A few cases of each operation only.
    pub quick: bool,
    /// How long to try random operations after the listed cases; a panic or a wrong result fails.
    pub budget: Duration,
    /// Which random numbers.
    pub seed: u64,
}

impl Options {
    /// The whole suite, or what the environment variable `TESELA_CASE` names.
    pub fn from_env() -> Options {
        Options { filter: std::env::var("TESELA_CASE").ok().filter(|s| !s.is_empty()), ..Options::default() }
    }
}

words! {
    /// How a check ended.
    Verdict {
        /// As it must be.
        Passed = "passed",
        /// The device has no kernel for it, and said why.
        Declined = "declined",
        /// Wrong.
        Failed = "failed",
    }
}

impl Serialize for Verdict {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One check of one kernel.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The case's text, `block KIND WEIGHTS #SEED`, or `contract: ...`.
    pub id: String,
    /// The operation's name, `block`, or `contract`.
    pub op: &'static str,
    /// What its operands are made of; a block's kind and what its weights are made of.
    pub dtypes: String,
    /// The kernel, where there is one; a block's kernels.
    pub kernel: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it was declined or failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// How far the results lay from the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
}

/// Everything that was checked on one device.
#[derive(Debug, Clone)]
pub struct Report {
    /// The device.
    pub device: DeviceInfo,
    /// In the order they were run.
    pub outcomes: Vec<Outcome>,
    /// How long it took.
    pub elapsed: Duration,
    /// A mistake in the options: nothing was run.
    pub refused: Option<String>,
}

/// Runs the whole suite, or what the environment variable `TESELA_CASE` names.
pub fn check(device: &dyn Backend) -> Report {
    check_with(device, &Options::from_env(), &mut |_, _| {})
}

/// Runs what the options choose. `progress` is told how many of how many cases are done.
pub fn check_with(device: &dyn Backend, options: &Options, progress: &mut dyn FnMut(usize, usize)) -> Report {
    let start = Instant::now();
    let mut report =
        Report { device: device.info().clone(), outcomes: Vec::new(), elapsed: start.elapsed(), refused: None };
    let cases = match cases(options) {
        Ok(cases) => cases,
        Err(e) => {
            report.refused = Some(e.to_string());
            return report;
        }
    };
    let blocks = blocks::blocks(options);
    let total = cases.len() + blocks.len();
    for (i, case) in cases.iter().enumerate() {
        progress(i, total);
        report.outcomes.extend(check_case(device, case));
    }
    for (i, block) in blocks.iter().enumerate() {
        progress(cases.len() + i, total);
        report.outcomes.push(blocks::check(device, block));
    }
    progress(total, total);
    let contract = options.filter.as_ref().is_none_or(|f| f.starts_with("contract"));
    if contract && (options.levels.is_empty() || options.levels.contains(&Level::Core)) {
        report.outcomes.extend(contract::check(device, options));
    }
    let (known, mut rng, deadline) = (Op::cases(), Rng(options.seed), Instant::now() + options.budget);
    while Instant::now() < deadline {
        if let Some(op) = case::mutate(&known, &mut rng) {
            report.outcomes.extend(check_case(device, &Case { op, fill: Fill::Normal, seed: options.seed }));
        }
    }
    report.elapsed = start.elapsed();
    report
}

/// Runs one case on every kernel the device has for it.
pub fn check_case(device: &dyn Backend, case: &Case) -> Vec<Outcome> {
    let outcome = |kernel: &str, verdict, why: String, stats| Outcome {
        id: case.to_string(),
        op: case.op.name(),
        dtypes: dtypes(&case.op),
        kernel: kernel.into(),
        verdict,
        why,
        stats,
    };
    let failed = |why: String| vec![outcome("", Verdict::Failed, why, None)];
    let plans = match guarded(|| plans(device, &case.op)) {
        Ok(Ok(Ok(plans))) => plans,
        Ok(Ok(Err(why))) => return vec![outcome("", Verdict::Declined, why, None)],
        Ok(Err(e)) => return failed(e.to_string()),
        Err(panic) => return failed(panic),
    };
    let prepared = match guarded(|| Prepared::new(case)) {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(e)) => return failed(format!("the case cannot be prepared: {e}")),
        Err(panic) => return failed(format!("the reference: {panic}")),
    };
    let run = |plan| match guarded(|| prepared.run(device, plan)) {
        Ok((stats, Ok(()))) => (Some(stats), Verdict::Passed, String::new()),
        Ok((stats, Err(why))) => (Some(stats), Verdict::Failed, why),
        Err(panic) => (None, Verdict::Failed, panic),
    };
    let each = plans.iter().map(|plan| {
        let (stats, verdict, why) = run(plan);
        outcome(plan.name(), verdict, why, stats)
    });
    each.collect()
}

/// Turns a panic into words: the suite goes on.
fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        format!("panicked: {}", text.unwrap_or("without a message"))
    })
}

impl Report {
    /// The outcomes with this verdict.
    pub fn with(&self, verdict: Verdict) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(move |o| o.verdict == verdict)
    }

    /// True where something was checked and nothing failed. Declining is no failure.
    pub fn passed(&self) -> bool {
        self.refused.is_none() && !self.outcomes.is_empty() && self.with(Verdict::Failed).next().is_none()
    }

    /// For tests: panics with the failures and, for each, a line that repeats it.
    pub fn assert(&self) {
        assert!(self.passed(), "{self}");
    }
}

/// A summary; of failures, the first ones with the line that repeats each.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |verdict| self.with(verdict).count();
        write!(
            f,
            "{}: {} passed, {} declined, {} failed in {:.1} s",
            self.device,
            count(Verdict::Passed),
            count(Verdict::Declined),
            count(Verdict::Failed),
            self.elapsed.as_secs_f64()
        )?;
        if let Some(why) = &self.refused {
            write!(f, "\nnothing was run: {why}")?;
        }
        const SHOWN: usize = 20;
        for o in self.with(Verdict::Failed).take(SHOWN) {
            write!(
                f,
                "\n{} {}\n    {}\n    repeat: TESELA_CASE='{}' cargo test conformance",
                o.kernel, o.id, o.why, o.id
            )?;
        }
        match count(Verdict::Failed).saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}
