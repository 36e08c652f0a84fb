//! One measurement as a line of JSON. Names never change their meaning; new ones may join.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    backend::{DeviceInfo, Peaks},
    dtype::DType,
    op::{Numerics, Op, Role},
};

/// The records' schema.
pub const SCHEMA: &str = "tesela-bench/1";

/// A measured and checked kernel on one operation and one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the groups are documented on their types")]
pub struct Record {
    #[serde(flatten)]
    pub identity: Identity,
    pub code: Code,
    pub device: Where,
    pub conditions: Conditions,
    pub samples: Samples,
    pub derived: Derived,
    pub correctness: Correctness,
    pub placement: Placement,
    /// Where another library was measured in turns with this one.
    pub peer: Option<Peer>,
    /// A command that repeats the measurement.
    pub repeat: String,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// [`SCHEMA`].
    pub schema: String,
    /// The operation's text: the id.
    pub case: String,
    /// The list it was taken from.
    pub suite: String,
    /// The operation's name.
    pub op: String,
    /// Extents by operand.
    pub shape: BTreeMap<String, Vec<usize>>,
    /// Element types by operand.
    pub dtypes: BTreeMap<String, String>,
    /// The weights' format, else that of the first operand.
    pub format: String,
    /// Fields and optional operands in use.
    pub epilogue: String,
    /// Of the random numbers.
    pub seed: u64,
}

/// What code ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Code {
    /// The crate's version.
    pub version: String,
    /// The commit it was built from; empty where unknown.
    pub commit: String,
    /// True where the sources differed from the commit.
    pub dirty: bool,
    /// The compiler.
    pub rustc: String,
    /// The crate's features that were on.
    pub features: Vec<String>,
    /// The kernel.
    pub kernel: String,
    /// `measured` for the fastest of the device's kernels, `forced` for the others.
    pub picked_by: String,
}

/// The device, as it describes itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Where {
    /// `cpu`, `wgpu`, `cuda`, ...
    pub backend: String,
    /// The product's name.
    pub name: String,
    /// Stable across runs.
    pub id: String,
    /// Driver and version, or instruction set.
    pub driver: String,
    /// In bytes; 0 where unknown.
    pub memory: u64,
    /// Measured limits.
    pub peak: Limits,
}

/// Measured peaks per second; 0 where not measured.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "as in `Peaks`")]
pub struct Limits {
    pub f32_flops: f64,
    pub half_flops: f64,
    pub int8_ops: f64,
    pub read_bytes: f64,
    pub copy_bytes: f64,
}

impl From<Peaks> for Limits {
    fn from(p: Peaks) -> Limits {
        Limits {
            f32_flops: p.f32_flops,
            half_flops: p.half_flops,
            int8_ops: p.int8_ops,
            read_bytes: p.read_bytes,
            copy_bytes: p.copy_bytes,
        }
    }
}

/// Under which circumstances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// `cold` where the rotated weights exceed the last-level cache, else `warm`.
    pub cache: String,
    /// Copies of the weights that were rotated through.
    pub weight_sets: usize,
    /// The device's threads; 0 where that means nothing.
    pub threads: usize,
    /// Processors that the process may use, after affinity and quota.
    pub cgroup_quota: usize,
    /// Of the last minute; absent where the system does not say.
    pub load_average: Option<f64>,
    /// True where a recorded sequence was replayed.
    pub graph_replay: bool,
    /// In MHz, where known.
    pub clocks: Option<f64>,
}

/// The times of one launch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// What measured.
    pub timer: String,
    /// Launches before the first sample.
    pub warm_up: usize,
    /// In the order they were taken, in turns with the device's other kernels. Nanoseconds per launch. Empty in rows
    /// with a peer: the kernel's own row has them.
    pub samples_ns: Vec<u64>,
    /// Smallest.
    pub min: u64,
    /// First quartile.
    pub q1: u64,
    /// Middle.
    pub median: u64,
    /// Third quartile.
    pub q3: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Median distance from the median.
    pub mad: u64,
}

impl Samples {
    /// Statistics of at least one sample.
    pub fn new(timer: &str, warm_up: usize, times: &[Duration]) -> Samples {
        let samples_ns: Vec<u64> = times.iter().map(|t| t.as_nanos() as u64).collect();
        let mut sorted = samples_ns.clone();
        sorted.sort_unstable();
        let at =
            |share: f64| sorted.get(((sorted.len().max(1) - 1) as f64 * share).round() as usize).copied().unwrap_or(0);
        let median = at(0.5);
        let mut distances: Vec<u64> = sorted.iter().map(|s| s.abs_diff(median)).collect();
        distances.sort_unstable();
        Samples {
            timer: timer.into(),
            warm_up,
            min: at(0.0),
            q1: at(0.25),
            median,
            q3: at(0.75),
            p99: at(0.99),
            mad: distances.get(distances.len() / 2).copied().unwrap_or(0),
            samples_ns,
        }
    }
}

/// What the times mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Derived {
    /// Least arithmetic.
    pub flops: u64,
    /// Least memory traffic.
    pub bytes: u64,
    /// At the median.
    pub flops_per_second: f64,
    /// At the median.
    pub bytes_per_second: f64,
    /// Of the limit that binds; absent where no peak was measured.
    pub fraction_of_peak: Option<f64>,
    /// `compute`, `memory`, or `latency` where the limits would allow less than two microseconds.
    pub bound: String,
}

impl Derived {
    /// At this time per launch on a device with these peaks.
    pub fn new(op: &Op, seconds: f64, peaks: &Peaks) -> Derived {
        let cost = op.cost();
        let ideal = |amount: u64, peak: f64| if peak > 0.0 { amount as f64 / peak } else { 0.0 };
        let (compute, memory) = (ideal(cost.flops, arithmetic_peak(op, peaks)), ideal(cost.bytes, peaks.read_bytes));
        let limit = compute.max(memory);
        let bound = match limit {
            0.0 => "unknown",
            l if l < 2e-6 => "latency",
            _ if compute >= memory => "compute",
            _ => "memory",
        };
        Derived {
            flops: cost.flops,
            bytes: cost.bytes,
            flops_per_second: cost.flops as f64 / seconds,
            bytes_per_second: cost.bytes as f64 / seconds,
            fraction_of_peak: (limit > 0.0).then(|| limit / seconds),
            bound: bound.into(),
        }
    }
}

/// The arithmetic that the operation permits at best.
fn arithmetic_peak(op: &Op, peaks: &Peaks) -> f64 {
    let operands = op.operands();
    let all = |test: &dyn Fn(DType) -> bool| {
        let mut inputs = operands.iter().filter(|o| matches!(o.role, Role::In | Role::Weight)).take(2);
        inputs.all(|o| test(o.spec.dtype()))
    };
    let integers = all(&|d| matches!(d, DType::I8 | DType::U8))
        || (op.numerics() == Numerics::Fast && operands.iter().any(|o| o.spec.dtype().is_quantized()));
    let best = match () {
        _ if integers => peaks.int8_ops,
        _ if all(&|d| matches!(d, DType::BF16 | DType::F16)) => peaks.half_flops,
        _ => peaks.f32_flops,
    };
    if best > 0.0 { best } else { peaks.f32_flops }
}

/// Whether the result is right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Correctness {
    /// True where the output was compared with the reference; only then is the time a result.
    pub checked: bool,
    /// Elements compared: all, or a sample of a large output.
    pub elements: usize,
    /// Normalized mean squared error.
    pub nmse: f64,
    /// Largest error as a fraction of the element's magnitude.
    pub max_rel: f64,
    /// What was allowed.
    pub bound: String,
    /// FNV-1a of the first output's bytes.
    pub output_hash: String,
    /// What is wrong; empty where nothing is.
    pub why: String,
}

/// Where it ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// The device's id.
    pub ran_on: String,
    /// Always false in published records.
    pub fell_back: bool,
}

/// Another library, measured in turns with this one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub peer: String,
    /// Its version.
    pub version: String,
    /// Its median in nanoseconds.
    pub median: u64,
    /// Its median over ours.
    pub ratio: f64,
}

impl Identity {
    /// Of an operation.
    pub fn new(op: &Op, suite: &str, seed: u64) -> Identity {
        let operands = op.operands();
        let weight = operands.iter().find(|o| o.role == Role::Weight).or(operands.first());
        let text = op.to_string();
        let required = text.split(' ').skip(1).filter(|word| {
            let key = word.split('=').next().unwrap_or_default();
            !["x", "w", "out", "q", "k", "v", "a", "b", "c", "dt", "table", "index"].contains(&key)
        });
        Identity {
            schema: SCHEMA.into(),
            case: text.clone(),
            suite: suite.into(),
            op: op.name().into(),
            shape: operands.iter().map(|o| (o.name.into(), o.spec.shape().to_vec())).collect(),
            dtypes: operands.iter().map(|o| (o.name.into(), o.spec.dtype().name().into())).collect(),
            format: weight.map_or(String::new(), |o| o.spec.dtype().name().into()),
            epilogue: required.collect::<Vec<_>>().join(" "),
            seed,
        }
    }
}

impl Code {
    /// This build's; the kernel is filled in later.
    pub fn of_this_build() -> Code {
        Code {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("TESELA_COMMIT").unwrap_or_default().into(),
            dirty: option_env!("TESELA_DIRTY") == Some("true"),
            rustc: option_env!("TESELA_RUSTC").unwrap_or_default().into(),
            features: crate::FEATURES.iter().map(|f| f.to_string()).collect(),
            kernel: String::new(),
            picked_by: String::new(),
        }
    }
}

impl Where {
    /// A device and its peaks.
    pub fn new(info: &DeviceInfo, peaks: Peaks) -> Where {
        Where {
            backend: info.backend.clone(),
            name: info.name.clone(),
            id: info.id.clone(),
            driver: info.driver.clone(),
            memory: info.memory,
            peak: peaks.into(),
        }
    }
}
