//! Tesela and its peers in turns: the same operands, the same clock, every output checked against the f64 reference.
//!
//! One thread is pinned to one processor and timed by the process's own time, so that a busy machine does not count; two or more by the
//! time of day, which means something on an idle machine only. Libraries of the Rust registry are linked in (`linked.rs`), those of
//! PyPI run in a worker each (`worker.rs`, `python/`).

mod cases;
mod linked;
mod worker;

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tesela::{
    Backend, Cpu, Device, Op, Runtime,
    backend::OpenOptions,
    bench::{Code, Format, LeftOut, Options, Record, Rival, Suite, measure_beside, page, peer_summary, peer_tables},
};

use cases::{What, cases};

/// Measures Tesela and its peers in turns. The tables say how many times as long as Tesela each peer takes.
#[derive(Parser)]
struct Args {
    /// Which operations.
    #[arg(long, value_delimiter = ',', default_values = ["dense", "quantized", "attention", "between"])]
    what: Vec<What>,
    /// A few cases of each, some minutes in all.
    #[arg(long)]
    quick: bool,
    /// Words that must all occur in an operation's text.
    #[arg(long, default_value = "")]
    select: String,
    /// Measure this operation alone.
    #[arg(long)]
    op: Option<Op>,
    /// Peers whose names contain one of these words, separated by commas.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Threads of Tesela and of every peer.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Time for each case and library together, in milliseconds.
    #[arg(long, default_value_t = 500)]
    ms: u64,
    /// Stop beginning new cases after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// The Python that has the peers of PyPI.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Adds the records there, one a line; cases that it holds are not measured again.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Measures nothing: prints the tables of this file of records.
    #[arg(long)]
    show: Option<PathBuf>,
    /// Draws the records there as a page.
    #[arg(long)]
    page: Option<PathBuf>,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let records = match &args.show {
        Some(file) => read(file)?,
        None => measure(args)?,
    };
    if let Some(file) = &args.page {
        fs::write(file, page(&records, &[]))?;
    }
    print!("{}{}", peer_summary(&records), peer_tables(&records));
    Ok(())
}

fn read(file: &PathBuf) -> Result<Vec<Record>, Failure> {
    let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn measure(args: &Args) -> Result<Vec<Record>, Failure> {
    same_threads(args.threads);
    let mut open = OpenOptions::default();
    open.threads = args.threads;
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::open(&open)?);
    let runtime = Runtime::builder().no_cache().device(cpu).build()?;
    let cpu = |d: &&Device| d.info().backend == "cpu" && d.info().threads == args.threads;
    let device = runtime.devices().iter().rfind(cpu).ok_or("no processor")?;
    let mut rivals = rivals(args);
    let mut options = Options::new(Suite::Models);
    options.weights = 512 << 20;
    options.clock = (args.threads == 1).then_some(process_time as fn() -> Duration);
    options.budget = Duration::from_millis(args.ms);
    let mut records = match &args.out {
        Some(file) if file.exists() => read(file)?,
        _ => Vec::new(),
    };
    let known: Vec<(String, usize)> = records.iter().map(|r| (r.identity.case.clone(), r.conditions.threads)).collect();
    let all = match args.op {
        Some(op) => vec![op],
        None => cases(&args.what, args.quick)?,
    };
    let words = |t: &str| args.select.split_ascii_whitespace().all(|w| t.contains(w));
    let all: Vec<Op> = all.into_iter().filter(|op| words(&op.to_string())).collect();
    let (code, start) = (Code::of_this_build(), Instant::now());
    let style = ProgressStyle::with_template("{pos}/{len} {bar:30} {eta} {wide_msg}")?;
    let bar = ProgressBar::new(all.len() as u64).with_style(style);
    for op in bar.wrap_iter(all.iter()) {
        if known.contains(&(op.to_string(), args.threads)) {
            continue;
        }
        if args.seconds.is_some_and(|s| start.elapsed().as_secs() >= s) {
            break;
        }
        bar.set_message(op.to_string());
        let mut refs: Vec<&mut dyn Rival> = rivals.iter_mut().map(|r| &mut **r as &mut dyn Rival).collect();
        let (more, left_out) =
            measure_beside(device, op, &options, &code, &mut refs).map_err(|e| format!("{e}: {op}"))?;
        let failed = |l: &&LeftOut| !l.why.starts_with("TypeError") && !l.why.starts_with("no ");
        for LeftOut { name, why } in left_out.iter().filter(failed) {
            bar.suspend(|| eprintln!("left out: {name}: {why}: {op}"));
        }
        if let Some(own) = more.iter().find(|r| r.peer.is_none() && !r.correctness.why.is_empty()) {
            return Err(format!("Tesela is wrong: {}: {op}", own.correctness.why).into());
        }
        let repeat = format!("tools/peers --threads {} --op '{op}'", args.threads);
        let more: Vec<Record> = more.into_iter().map(|r| Record { repeat: repeat.clone(), ..r }).collect();
        if let Some(file) = &args.out {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(file)?;
            file.write_all(Format::Jsonl.write(&more).as_bytes())?;
        }
        records.extend(more);
        device.trim();
    }
    bar.finish_and_clear();
    Ok(records)
}

/// Those that are wanted and there; the reasons of the others are printed.
fn rivals(args: &Args) -> Vec<Box<dyn Rival>> {
    let wanted = |name: &str| args.peers.is_empty() || args.peers.iter().any(|p| name.contains(p.as_str()));
    let clock = if args.threads == 1 { process_time } else { time_of_day };
    let mut all: Vec<Box<dyn Rival>> = linked::all(args.threads, clock);
    all.retain(|r| wanted(r.name()));
    for name in worker::NAMES.iter().filter(|n| wanted(n)) {
        match worker::Worker::start(&args.python, name, args.threads) {
            Ok(one) => all.push(Box::new(one)),
            Err(why) => eprintln!("absent: {name}: {why}"),
        }
    }
    all
}

/// Every library is told the same number of threads, and one thread stays on one processor.
fn same_threads(threads: usize) {
    for name in ["RAYON", "OMP", "OPENBLAS", "MKL", "BLIS", "MATMUL", "RTEN"] {
        // SAFETY: called before any thread is started.
        unsafe { std::env::set_var(format!("{name}_NUM_THREADS"), threads.to_string()) };
    }
    if threads == 1 {
        // SAFETY: the set is zeroed, its size is passed, and the processor is one that the process is running on.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(libc::sched_getcpu().max(0) as usize, &mut set);
            libc::sched_setaffinity(0, size_of_val(&set), &set);
        }
    }
}

fn process_time() -> Duration {
    now(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn time_of_day() -> Duration {
    now(libc::CLOCK_MONOTONIC)
}

fn now(clock: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(clock, &mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
