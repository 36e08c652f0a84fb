//! Timing all kernels that a device has for an operation, in turns, and checking what they compute.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    Options,
    check::check,
    record::{Code, Conditions, Derived, Identity, Peer, Placement, Record, Samples, Where},
    rival::{LeftOut, Rival},
};
use crate::{
    backend::{Replay, View},
    dispatch::{Device, Launch, contents, pack},
    error::{Error, Result},
    op::{Op, Operands, Rng, Role},
};

/// What a sample should last at least: the timer's own cost must not show, nor that of a device's waking up.
const SAMPLE: Duration = Duration::from_micros(300);
const DEVICE_SAMPLE: Duration = Duration::from_millis(2);
/// Before a sample of several threads beside other libraries, whose own threads go on spinning for so long: OpenMP's some milliseconds,
/// OpenBLAS's 2^26 cycles.
const SETTLE: Duration = Duration::from_millis(30);
const WARM_UP: usize = 2;
/// From how many operations for a byte on it does not matter whether a weight comes from the cache: on processors, and on devices.
const REUSE: (u64, u64) = (32, 512);
const MOST_SAMPLES: usize = 60;

/// A kernel with its operands: one list of arguments for each set of weights.
struct Staged {
    launch: Launch,
    sets: Vec<Vec<View>>,
    scratch: Option<View>,
    samples: Vec<Duration>,
    repeat: usize,
    /// A sample's launches, where the device records: how a model's layers run, and what no host's speed is part of.
    replay: Option<Box<dyn Replay>>,
}

/// Measures the operation on one device: a record for each of its kernels. `Unsupported` where it has none.
pub fn measure(device: &Device, op: &Op, options: &Options, code: &Code) -> Result<Vec<Record>> {
    Ok(measure_beside(device, op, options, code, &mut [])?.0)
}

/// The same in turns with other libraries. Each adds a record of the device's fastest kernel that has the library as its peer; one that
/// cannot run the operation, or computes it wrongly, is named with the reason instead.
pub fn measure_beside(
    device: &Device,
    op: &Op,
    options: &Options,
    code: &Code,
    rivals: &mut [&mut dyn Rival],
) -> Result<(Vec<Record>, Vec<LeftOut>)> {
    let plans = device.backend().plan(op)?;
    let (operands, mut rng) = (op.operands(), Rng(options.seed));
    let mut host = Vec::new();
    for o in &operands {
        let mut bytes = vec![0xff; o.spec.span()];
        if o.role != Role::Out {
            contents(op, o, &mut rng, &mut bytes)?;
        }
        host.push(bytes);
    }
    let weights: usize = operands.iter().filter(|o| o.role == Role::Weight).map(|o| o.spec.span()).sum();
    let reuse = if device.info().threads == 0 { REUSE.1 } else { REUSE.0 };
    let thin = op.cost().flops / reuse < op.cost().bytes;
    let sets = if weights == 0 || !thin { 1 } else { (options.weights / weights).clamp(1, 16) };
    let mut staged = Vec::new();
    let mut shared: Vec<View> = Vec::new();
    for bytes in &host {
        shared.push(upload(device, bytes)?);
    }
    for plan in plans.into_iter().take(options.kernels) {
        let launch = Launch::new(op, plan, device.token())?;
        let args = stage(device, &launch, &operands, &host, &shared, sets)?;
        let scratch = Some(launch.plan().scratch()).filter(|&n| n > 0);
        let scratch = scratch.map(|n| Ok::<_, Error>(View::whole(device.backend().alloc(n)?))).transpose()?;
        staged.push(Staged { launch, sets: args, scratch, samples: Vec::new(), repeat: 1, replay: None });
    }
    // The first check also warms up: caches, page tables, pipelines.
    let mut verdicts = Vec::new();
    for s in &mut staged {
        for (i, o) in operands.iter().enumerate().filter(|(_, o)| o.role.writes()) {
            device.backend().write(&s.sets[0][i].slice(0, o.spec.span())?, &host[i])?;
        }
        s.run(0, 1)?;
        let mut after = Vec::new();
        for (i, o) in operands.iter().enumerate() {
            let mut bytes = vec![0; if o.role.writes() { o.spec.span() } else { 0 }];
            device.backend().read(&s.sets[0][i].slice(0, bytes.len())?, &mut bytes)?;
            after.push(o.role.writes().then_some(bytes));
        }
        verdicts.push(check(op, &host, &after)?);
        let single = s.sample(device, options)?;
        let sample = if device.info().threads == 0 { DEVICE_SAMPLE } else { SAMPLE };
        s.repeat = (sample.as_nanos() / single.as_nanos().max(1)).clamp(1, 1024) as usize;
        // Every replay begins with the first set: it has all of them.
        let all = s.repeat.max(s.sets.len());
        s.replay = device.backend().record(&mut || s.run(0, all))?;
        if s.replay.is_some() {
            s.repeat = all;
            s.sample(device, options)?;
        }
    }
    let (mut beside, mut left_out) = (Vec::new(), Vec::new());
    for rival in rivals.iter_mut() {
        let name = rival.name().to_string();
        match Beside::new(&mut **rival, op, &host, sets) {
            Ok(one) => beside.push(one),
            Err(why) => left_out.push(LeftOut { name, why }),
        }
    }
    let in_turns = !beside.is_empty() && device.info().threads > 1;
    let start = Instant::now();
    for round in 0..MOST_SAMPLES {
        // At least three rounds, unless one takes far longer than was granted.
        let spent = start.elapsed();
        if (round >= 3 && spent > options.budget) || (round > 0 && spent > 3 * options.budget) {
            break;
        }
        for s in &mut staged {
            if in_turns {
                thread::sleep(SETTLE);
                // With the set that the sample comes to last, as the others do: those that it reads first are in no cache.
                s.run(s.first() + s.sets.len() - 1, 1)?;
            }
            let sample = s.sample(device, options)?;
            s.samples.push(sample);
        }
        for one in &mut beside {
            one.sample(in_turns);
        }
    }
    let results: Vec<Samples> =
        staged.iter().map(|s| Samples::new(timer(device, options), WARM_UP, &s.samples)).collect();
    let fastest = (0..results.len()).min_by_key(|&i| results[i].median);
    let place = Where::new(device.info(), device.peaks());
    let records = staged.iter().zip(results).zip(verdicts).enumerate().map(|(i, ((s, samples), correctness))| {
        let picked = Some(i) == fastest;
        Record {
            identity: Identity::new(op, options.suite.name(), options.seed),
            code: Code {
                kernel: s.launch.plan().name().into(),
                picked_by: if picked { "measured" } else { "forced" }.into(),
                ..code.clone()
            },
            device: place.clone(),
            conditions: Conditions { graph_replay: s.replay.is_some(), ..conditions(device, sets, sets * weights) },
            derived: Derived::new(op, samples.median.max(1) as f64 * 1e-9, &device.peaks()),
            samples,
            correctness,
            placement: Placement { ran_on: device.info().id.clone(), fell_back: false },
            peer: None,
            repeat: format!("tesela bench --device '{}' --filter '{op}'", device.info().id),
        }
    });
    let mut records: Vec<Record> = records.collect();
    let best = fastest.and_then(|i| records.get(i)).cloned();
    for one in beside {
        let name = one.rival.name().to_string();
        match (&one.why, &best) {
            (Some(why), _) => left_out.push(LeftOut { name, why: why.clone() }),
            (None, Some(best)) => {
                let median = Samples::new("", 0, &one.samples).median;
                let ratio = median as f64 / best.samples.median.max(1) as f64;
                let peer = Peer { peer: name, version: one.rival.version().into(), median, ratio };
                let samples = Samples { samples_ns: Vec::new(), ..best.samples.clone() };
                records.push(Record { peer: Some(peer), samples, ..best.clone() });
            }
            (None, None) => left_out.push(LeftOut { name, why: "the device has no kernel to compare with".into() }),
        }
    }
    Ok((records, left_out))
}

fn timer(device: &Device, options: &Options) -> &'static str {
    match options.clock {
        _ if device.info().threads == 0 => "device",
        Some(_) => "clock",
        None => "host",
    }
}

/// Another library with its operands.
struct Beside<'a> {
    rival: &'a mut dyn Rival,
    samples: Vec<Duration>,
    repeat: usize,
    why: Option<String>,
}

impl<'a> Beside<'a> {
    /// Ready, warm and found right.
    fn new(
        rival: &'a mut dyn Rival,
        op: &Op,
        host: &[Vec<u8>],
        sets: usize,
    ) -> std::result::Result<Beside<'a>, String> {
        rival.prepare(op, host, sets)?;
        rival.time(1)?;
        let mut output = Some(rival.output()?);
        let take = |o: &crate::op::Operand| if o.role == Role::Out { output.take() } else { None };
        let after: Vec<_> = op.operands().iter().map(take).collect();
        let sizes = op.operands().iter().zip(&after).all(|(o, b)| b.as_ref().is_none_or(|b| b.len() == o.spec.span()));
        if !sizes {
            return Err("its output has another size".into());
        }
        let verdict = check(op, host, &after).map_err(|e| e.to_string())?;
        if !verdict.checked || !verdict.why.is_empty() {
            return Err(format!("wrong result: {}", verdict.why));
        }
        let single = rival.time(1)?;
        let repeat = (SAMPLE.as_nanos() / single.as_nanos().max(1)).clamp(1, 1024) as usize;
        Ok(Beside { rival, samples: Vec::new(), repeat, why: None })
    }

    fn sample(&mut self, in_turns: bool) {
        if self.why.is_some() {
            return;
        }
        if in_turns {
            thread::sleep(SETTLE);
        }
        let warm_up = if in_turns { self.rival.time(1).map(drop) } else { Ok(()) };
        match warm_up.and_then(|()| self.rival.time(self.repeat)) {
            Ok(time) => self.samples.push(time / self.repeat as u32),
            Err(why) => self.why = Some(why),
        }
    }
}

impl Staged {
    /// Launches with the sets of weights in turn, beginning with `first`.
    fn run(&self, first: usize, count: usize) -> Result<()> {
        (0..count).try_for_each(|i| self.launch.run(&self.sets[(first + i) % self.sets.len()], self.scratch.as_ref()))
    }

    /// The set of weights that the next sample begins with, counted on.
    fn first(&self) -> usize {
        self.samples.len() * self.repeat
    }

    /// Time per launch.
    fn sample(&self, device: &Device, options: &Options) -> Result<Duration> {
        let first = self.first();
        let time = match (options.clock.filter(|_| device.info().threads > 0), &self.replay) {
            // SAFETY: the views that it was recorded with are in `sets` and `scratch`.
            (None, Some(replay)) => device.backend().time(&mut || unsafe { replay.run() })?,
            (Some(clock), _) => {
                let start = clock();
                self.run(first, self.repeat)?;
                clock().saturating_sub(start)
            }
            (None, None) => device.backend().time(&mut || self.run(first, self.repeat))?,
        };
        Ok(time / self.repeat as u32)
    }
}

/// The arguments, once for each set: weights of their own, packed as the kernel wants them; everything else shared.
fn stage(
    device: &Device,
    launch: &Launch,
    operands: &Operands,
    host: &[Vec<u8>],
    shared: &[View],
    sets: usize,
) -> Result<Vec<Vec<View>>> {
    let argument = |set: usize, i: usize| match launch.plan().packing(i) {
        Some(_) => pack(device, launch, i, &operands[i].spec, &host[i]),
        None if set > 0 && operands[i].role == Role::Weight => upload(device, &host[i]),
        None => Ok(shared[i].clone()),
    };
    (0..sets).map(|set| (0..operands.len()).map(|i| argument(set, i)).collect()).collect()
}

fn upload(device: &Device, bytes: &[u8]) -> Result<View> {
    let view = View::whole(device.backend().alloc(bytes.len())?);
    device.backend().write(&view, bytes)?;
    Ok(view)
}

fn conditions(device: &Device, weight_sets: usize, weights: usize) -> Conditions {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let load = read("/proc/loadavg").and_then(|s| s.split(' ').next()?.parse().ok());
    let cache = read("/sys/devices/system/cpu/cpu0/cache/index3/size");
    let cache = cache.and_then(|s| s.trim().strip_suffix('K')?.parse::<usize>().ok()).map_or(64 << 20, |k| k << 10);
    Conditions {
        cache: if weights > cache { "cold" } else { "warm" }.into(),
        weight_sets,
        threads: device.info().threads,
        cgroup_quota: std::thread::available_parallelism().map_or(0, |n| n.get()),
        load_average: load,
        graph_replay: false,
        clocks: None,
    }
}
