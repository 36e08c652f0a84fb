//! Why an operation runs where it does.

use std::{fmt, time::Duration};

use super::{Device, Dispatcher};
use crate::{
    dtype::DType,
    error::{Error, Result},
    op::{Op, words},
};

words! {
    /// How a kernel was chosen.
    How {
        /// Its class was measured by this process.
        Measured = "measured",
        /// Its class was measured before, and the time was kept on disk.
        Remembered = "remembered",
        /// Not measured (too large, or without room for it): the backend's own order.
        Estimated = "estimated",
        /// There was no other.
        Only = "only",
    }
}

/// What would run an operation, what else could, and what cannot and why.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The operation.
    pub op: Op,
    /// The fastest kernel on the fastest device; `None` where every device declines. (An operation runs where its tensors are.)
    pub chosen: Option<Chosen>,
    /// Every kernel, device by device, fastest first.
    pub candidates: Vec<Candidate>,
    /// Devices without a kernel, and kernels that failed their self-test.
    pub declined: Vec<Declined>,
}

/// The choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The device's id.
    pub device: String,
    /// The kernel.
    pub kernel: String,
    /// On what grounds.
    pub how: How,
}

/// A kernel that can run the operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The device's id.
    pub device: String,
    /// The kernel.
    pub kernel: String,
    /// Measured for the operation's class ([`Op::class`]).
    pub time: Option<Duration>,
    /// The share of the device's measured peak, of arithmetic or of memory, whichever is greater.
    pub fraction_of_peak: Option<f64>,
}

/// A device or kernel that does not run the operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declined {
    /// The device's id.
    pub device: String,
    /// Its reason.
    pub why: String,
}

impl Dispatcher {
    /// Measures what is not known yet, within the usual limits.
    pub(crate) fn explain(&self, op: &Op) -> Result<Explanation> {
        op.validate()?;
        let mut all = Explanation { op: *op, chosen: None, candidates: Vec::new(), declined: Vec::new() };
        let mut best: Option<(bool, Duration)> = None;
        for device in &self.devices {
            let id = || device.info().id.clone();
            let plans = match device.backend().plan(op) {
                Ok(plans) => plans,
                Err(Error::Unsupported { why, .. }) => {
                    all.declined.push(Declined { device: id(), why });
                    continue;
                }
                Err(other) => {
                    all.declined.push(Declined { device: id(), why: other.to_string() });
                    continue;
                }
            };
            let ranked = self.rank(op, device, plans, &[], 1)?;
            for (kernel, why) in ranked.wrong {
                all.declined.push(Declined { device: id(), why: format!("{kernel}: {why}") });
            }
            for (i, (plan, time)) in ranked.plans.iter().enumerate() {
                let kernel = plan.name().to_string();
                let rank = (device.is_last_resort(), time.unwrap_or(Duration::MAX));
                if i == 0 && best.is_none_or(|b| rank < b) {
                    best = Some(rank);
                    all.chosen = Some(Chosen { device: id(), kernel: kernel.clone(), how: ranked.how });
                }
                let fraction_of_peak = time.and_then(|t| fraction(device, op, t));
                all.candidates.push(Candidate { device: id(), kernel, time: *time, fraction_of_peak });
            }
        }
        Ok(all)
    }
}

fn fraction(device: &Device, op: &Op, time: Duration) -> Option<f64> {
    let (peaks, cost) = (device.peaks(), op.class().cost());
    let share = |amount: u64, peak: f64| (peak > 0.0).then(|| amount as f64 / time.as_secs_f64() / peak);
    let arithmetic = match op.operands().first().map(|o| o.spec.dtype()) {
        Some(DType::F16 | DType::BF16) if peaks.half_flops > 0.0 => peaks.half_flops,
        Some(DType::I8 | DType::U8) if peaks.int8_ops > 0.0 => peaks.int8_ops,
        _ => peaks.f32_flops,
    };
    let (flops, bytes) = (share(cost.flops, arithmetic), share(cost.bytes, peaks.read_bytes));
    flops.into_iter().chain(bytes).reduce(f64::max)
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.op)?;
        match &self.chosen {
            Some(c) => writeln!(f, "chosen    {} on {} ({})", c.kernel, c.device, c.how)?,
            None => writeln!(f, "chosen    none: every device declines")?,
        }
        let width = |all: &mut dyn Iterator<Item = usize>| all.max().unwrap_or(0);
        let device = width(&mut self.candidates.iter().map(|c| c.device.chars().count()));
        let kernel = width(&mut self.candidates.iter().map(|c| c.kernel.chars().count()));
        for c in &self.candidates {
            let time = c.time.map_or("not measured".into(), |t| format!("{t:.1?}"));
            write!(f, "candidate {:device$}  {:kernel$}  {time:>12}", c.device, c.kernel)?;
            match c.fraction_of_peak {
                Some(share) => writeln!(f, "  {:.0} % of peak", share * 100.0)?,
                None => writeln!(f)?,
            }
        }
        self.declined.iter().try_for_each(|d| writeln!(f, "declined  {}: {}", d.device, d.why))
    }
}
