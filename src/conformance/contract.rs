//! What the contract promises beyond right numbers: memory, order, threads, lifetimes, refusals.

use std::{sync::Arc, time::Duration};

use super::{
    Case, Options, Outcome, Verdict, guarded, plans,
    run::{Outputs, Prepared},
};
use crate::{
    backend::{Backend, Plan, View},
    dispatch::Launch,
    error::{Error, Result},
    op::{Op, Rng, words},
};

/// A test's answer: the inner error says what is wrong, the outer one what failed on the way.
type Answer = Result<Result<(), String>>;

/// Runs the tests the options choose.
pub fn check(device: &dyn Backend, options: &Options) -> Vec<Outcome> {
    let filter = options.filter.as_deref().unwrap_or_default();
    let chosen = Test::ALL.iter().filter(|t| format!("contract: {t}").contains(filter));
    let outcome = |test: &Test| {
        let answer = guarded(|| test.run(device)).map(|answer| answer.unwrap_or_else(|e| Err(e.to_string())));
        let (verdict, why) = match answer.and_then(|inner| inner) {
            Ok(()) => (Verdict::Passed, String::new()),
            Err(why) if why == NO_PROBE => (Verdict::Declined, why),
            Err(why) => (Verdict::Failed, why),
        };
        Outcome {
            id: format!("contract: {test}"),
            op: "contract",
            dtypes: String::new(),
            kernel: String::new(),
            verdict,
            why,
            stats: None,
        }
    };
    chosen.map(outcome).collect()
}

words! {
    /// A promise that is tested.
    Test {
        /// The description has what users and caches rely on.
        Identity = "identity",
        /// New memory is zero, as long as asked for, and of this device.
        Memory = "memory",
        /// Bytes arrive at odd sizes and offsets, and only there.
        Copies = "copies",
        /// An absurd size is refused, and the device goes on working.
        OutOfMemory = "out-of-memory",
        /// Work runs in the order it was enqueued; a copy waits for what came before.
        Order = "order",
        /// Several threads may use the device at once.
        Threads = "threads",
        /// Operands may be dropped while work on them is under way.
        Drop = "drop",
        /// Wrong operands never reach a kernel.
        Refusals = "refusals",
        /// The same question gets the same kernels.
        Planning = "planning",
        /// Time is measured, and faults inside are passed on.
        Timing = "timing",
        /// Host memory used in place is read, never written.
        Adoption = "adoption",
        /// Where batch invariance is promised, rows do not depend on their neighbours.
        BatchInvariance = "batch-invariance",
    }
}

impl Test {
    fn run(self, device: &dyn Backend) -> Answer {
        match self {
            Test::Identity => identity(device),
            Test::Memory => memory(device),
            Test::Copies => copies(device),
            Test::OutOfMemory => out_of_memory(device),
            Test::Order => order(device),
            Test::Threads => threads(device),
            Test::Drop => dropping(device),
            Test::Refusals => refusals(device),
            Test::Planning => planning(device),
            Test::Timing => timing(device),
            Test::Adoption => adoption(device),
            Test::BatchInvariance => batch_invariance(device),
        }
    }
}

macro_rules! must {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Ok(Err(format!($($message)+)));
        }
    };
}

const NO_PROBE: &str = "the device runs none of the operations that this is tested with";

/// Small operations whose first operand has the shape of the output: one of them probes the device.
const PROBES: [&str; 3] = [
    "matmul x=f32:16x16 w=f32:16x16 out=f32:16x16 scale=0.25",
    "elementwise a=f32:16x16 out=f32:16x16 alpha=2.0 beta=1.0",
    "convert x=f32:16x16 out=f32:16x16",
];

/// A prepared case and a kernel for it. A device without one is not tested further.
fn probe(device: &dyn Backend, seed: u64) -> Result<(Prepared, Arc<dyn Plan>)> {
    for text in PROBES {
        let case: Case = format!("{text} #normal.{seed}").parse()?;
        if let Ok(plans) = plans(device, &case.op)? {
            return Ok((Prepared::new(&case)?, plans[0].clone()));
        }
    }
    Err(Error::unsupported("contract", NO_PROBE))
}

/// The rest of a test on the probe; without one, the test is declined.
fn with_probe(device: &dyn Backend, test: impl FnOnce(Prepared, Arc<dyn Plan>) -> Answer) -> Answer {
    match probe(device, 0) {
        Ok((prepared, plan)) => test(prepared, plan),
        Err(Error::Unsupported { .. }) => Ok(Err(NO_PROBE.into())),
        Err(other) => Err(other),
    }
}

fn identity(device: &dyn Backend) -> Answer {
    let info = device.info();
    must!(
        !info.backend.is_empty() && !info.backend.contains(char::is_whitespace),
        "backend is no word: {:?}",
        info.backend
    );
    must!(!info.name.is_empty() && !info.id.is_empty(), "name or id is empty");
    must!(info.max_buffer > 0, "max_buffer is 0");
    must!(device.token() == device.token(), "the token changes");
    let peaks = device.peaks()?;
    let all = [peaks.f32_flops, peaks.half_flops, peaks.int8_ops, peaks.read_bytes, peaks.copy_bytes];
    must!(all.iter().all(|p| p.is_finite() && *p >= 0.0), "a peak is no rate: {peaks:?}");
    Ok(Ok(()))
}

fn memory(device: &dyn Backend) -> Answer {
    for size in [0, 1, 63, 4096, 100_003] {
        for round in 0..2 {
            let buffer = device.alloc(size)?;
            must!(buffer.len() == size, "{size} bytes asked for, {} given", buffer.len());
            must!(buffer.token() == device.token(), "a buffer carries another device's token");
            must!(!buffer.read_only(), "allocated memory is read-only");
            let view = View::whole(buffer);
            let mut bytes = vec![1; size];
            device.read(&view, &mut bytes)?;
            must!(bytes.iter().all(|&b| b == 0), "round {round}: new memory of {size} bytes is not zero");
            device.write(&view, &vec![0xff; size])?; // what the next round may be given again
        }
    }
    Ok(Ok(()))
}

fn copies(device: &dyn Backend) -> Answer {
    let view = View::whole(device.alloc(1009)?);
    let (mut mirror, mut rng) = (vec![0u8; 1009], Rng(7));
    for round in 0..60 {
        let (offset, len) = if round == 0 { (0, 1009) } else { (rng.below(1000), rng.below(40)) };
        let len = len.min(1009 - offset);
        let bytes: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
        device.write(&view.slice(offset, len)?, &bytes)?;
        mirror[offset..offset + len].copy_from_slice(&bytes);
        let (offset, mut part) = (rng.below(900), vec![0; rng.below(109)]);
        device.read(&view.slice(offset, part.len())?, &mut part)?;
        must!(part == mirror[offset..offset + part.len()], "{} bytes read at {offset} are wrong", part.len());
    }
    let mut all = vec![0; 1009];
    device.read(&view, &mut all)?;
    must!(all == mirror, "a write touched bytes outside its range");
    let part = view.slice(0, 8)?;
    must!(
        device.write(&part, &[0; 7]).is_err() && device.read(&part, &mut [0; 9]).is_err(),
        "lengths that differ are accepted"
    );
    Ok(Ok(()))
}

fn out_of_memory(device: &dyn Backend) -> Answer {
    for bytes in [usize::MAX, isize::MAX as usize, isize::MAX as usize / 2] {
        match device.alloc(bytes) {
            Err(Error::OutOfMemory { .. }) => {}
            other => return Ok(Err(format!("{bytes} bytes: expected OutOfMemory, got {other:?}"))),
        }
    }
    with_probe(device, |prepared, plan| Ok(prepared.run(device, &plan).1.map_err(|why| format!("afterwards: {why}"))))
}

/// A chain of dependent launches, its first input overwritten while it runs: the same with and without waiting.
fn order(device: &dyn Backend) -> Answer {
    with_probe(device, |prepared, plan| {
        let chain = |wait: bool| -> Result<Vec<u8>> {
            let stage = prepared.place(device, &plan)?;
            let operands = stage.launch.op().operands();
            let out = operands.iter().position(|o| o.role.writes()).unwrap_or_default();
            let len = stage.args[0].len();
            let mut pair = [View::whole(device.alloc(len)?), View::whole(device.alloc(len)?)];
            let mut args = stage.args.clone();
            args[out] = pair[0].clone();
            for step in 0..12 {
                stage.launch_on(&args)?;
                if step == 0 {
                    device.write(&stage.args[0], &vec![0xff; len])?;
                }
                if wait {
                    device.sync()?;
                }
                (args[0], args[out]) = (pair[0].clone(), pair[1].clone());
                pair.swap(0, 1);
            }
            let mut result = vec![0; len];
            device.read(&args[0], &mut result)?;
            Ok(result)
        };
        let (waiting, eager) = (floats(&chain(true)?), floats(&chain(false)?));
        let close = waiting.iter().zip(&eager).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs().max(1.0));
        must!(close, "twelve dependent launches give other results without waiting in between");
        Ok(Ok(()))
    })
}

fn threads(device: &dyn Backend) -> Answer {
    with_probe(device, |shared, plan| {
        let work = |seed: u64| -> Answer {
            let (own, _) = probe(device, seed)?;
            for _ in 0..4 {
                for prepared in [&own, &shared] {
                    if let Err(why) = prepared.run(device, &plan).1 {
                        return Ok(Err(format!("with four threads: {why}")));
                    }
                }
            }
            Ok(Ok(()))
        };
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let all: Vec<_> = (1..=4).map(|seed| scope.spawn(move || work(seed))).collect();
            all.into_iter().map(|t| t.join().unwrap_or_else(|_| Ok(Err("a thread panicked".into())))).collect()
        });
        answers.into_iter().find(|a| !matches!(a, Ok(Ok(())))).unwrap_or(Ok(Ok(())))
    })
}

fn dropping(device: &dyn Backend) -> Answer {
    with_probe(device, |prepared, plan| {
        for _ in 0..4 {
            let stage = prepared.place(device, &plan)?;
            let out = stage
                .args
                .iter()
                .zip(&stage.launch.op().operands())
                .find(|(_, o)| o.role.writes())
                .map(|(v, _)| v.clone());
            let Some(out) = out else { return Ok(Ok(())) };
            stage.launch()?;
            let lengths: Vec<usize> = stage.args.iter().map(|v| v.buffer().len()).collect();
            drop(stage);
            for len in lengths {
                let reused = View::whole(device.alloc(len)?);
                device.write(&reused, &vec![0xff; len])?;
            }
            let mut bytes = vec![0; out.len()];
            device.read(&out, &mut bytes)?;
            if let Err(why) = prepared.judge(&bytes) {
                return Ok(Err(format!("after its operands were dropped: {why}")));
            }
        }
        Ok(Ok(()))
    })
}

fn refusals(device: &dyn Backend) -> Answer {
    with_probe(device, |prepared, plan| {
        let stage = prepared.place(device, &plan)?;
        let operands = stage.launch.op().operands();
        let out = operands.iter().position(|o| o.role.writes()).unwrap_or_default();
        let with = |at: usize, view: View| {
            let mut args = stage.args.clone();
            args[at] = view;
            args
        };
        let short = stage.args[out].slice(0, stage.args[out].len() - 1)?;
        let crooked = View::whole(device.alloc(4096)?).slice(1, 2048)?;
        let shifted = stage.args[0].buffer().clone();
        let shifted = View::whole(shifted).slice(stage.args[0].offset() + 4, stage.args[0].len())?;
        for (what, args) in [
            ("an operand too few", stage.args[1..].to_vec()),
            ("a view that is too short", with(out, short)),
            ("a view that is not aligned to its elements", with(out, crooked)),
            ("an output that overlaps an input", with(out, shifted)),
        ] {
            let refused = matches!(stage.launch_on(&args), Err(Error::Invalid { .. }));
            must!(refused, "{what} is accepted");
        }
        let foreign = Launch::new(stage.launch.op(), plan.clone(), crate::backend::Token::new())?;
        must!(foreign.run(&stage.args, None).is_err(), "another device's buffers are accepted");
        stage.launch()?;
        Ok(prepared.outputs(device, &stage)?.map(drop))
    })
}

fn planning(device: &dyn Backend) -> Answer {
    for text in PROBES {
        let op: Op = text.parse()?;
        let names = |plans: Vec<Arc<dyn Plan>>| plans.iter().map(|p| p.name().to_string()).collect::<Vec<_>>();
        let (first, second) = (plans(device, &op)?.map(names), plans(device, &op)?.map(names));
        must!(first == second, "{op}: {first:?}, and asked again {second:?}");
        let names = first.unwrap_or_default();
        let word = |n: &String| n.split('-').count() >= 3 && !n.contains(char::is_whitespace);
        must!(names.iter().all(word), "{names:?}: a kernel's name is DEVICE-TYPES-VARIANT");
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        must!(unique.len() == names.len(), "{names:?}: two kernels share a name");
    }
    Ok(Ok(()))
}

fn timing(device: &dyn Backend) -> Answer {
    with_probe(device, |prepared, plan| {
        let stage = prepared.place(device, &plan)?;
        let mut calls = 0;
        let time = device.time(&mut || {
            calls += 1;
            (0..8).try_for_each(|_| stage.launch())
        })?;
        must!(calls >= 1, "the work to be timed was not enqueued");
        must!(time > Duration::ZERO && time < Duration::from_secs(60), "eight small launches took {time:?}");
        let fault = device.time(&mut || Err(Error::invalid("probe", "a fault")));
        must!(fault == Err(Error::invalid("probe", "a fault")), "a fault inside is not passed on: {fault:?}");
        Ok(prepared.outputs(device, &stage)?.map(drop))
    })
}

fn adoption(device: &dyn Backend) -> Answer {
    let bytes: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
    let Some(buffer) = device.adopt(Arc::new(bytes.clone())) else { return Ok(Ok(())) };
    must!(
        buffer.read_only() && buffer.token() == device.token() && buffer.len() == 1000,
        "{buffer:?} is not as adopted"
    );
    let view = View::whole(buffer);
    let mut got = vec![0; 1000];
    device.read(&view, &mut got)?;
    must!(got == bytes, "adopted memory reads as something else");
    must!(device.write(&view, &got).is_err(), "adopted memory can be written");
    Ok(Ok(()))
}

fn batch_invariance(device: &dyn Backend) -> Answer {
    for dtype in ["f32", "q8_0"] {
        let text = |m: usize| format!("matmul x=f32:{m}x64 w={dtype}:24x64 out=f32:{m}x24 determinism=batch-invariant");
        let whole: Case = format!("{} #normal.0", text(9)).parse()?;
        let part: Case = format!("{} #normal.0", text(2)).parse()?;
        let (Ok(whole_plans), Ok(part_plans)) = (plans(device, &whole.op)?, plans(device, &part.op)?) else { continue };
        let whole = Prepared::new(&whole)?;
        let part = Prepared::new(&part)?.with_inputs_of(&whole);
        let rows = |prepared: &Prepared, plan| -> Result<Result<Outputs, String>> {
            let stage = prepared.place(device, plan)?;
            stage.launch()?;
            prepared.outputs(device, &stage)
        };
        let (Ok(nine), Ok(two)) = (rows(&whole, &whole_plans[0])?, rows(&part, &part_plans[0])?) else { continue };
        let same = nine.iter().zip(&two).all(|((_, a), (_, b))| a[..b.len()] == b[..]);
        must!(same, "{dtype}: two rows alone get other bits than among nine");
    }
    Ok(Ok(()))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
