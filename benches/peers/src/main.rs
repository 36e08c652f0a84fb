//! Tesela and its peers in turns: the same operands, the same clock, every output checked against the f64 reference.
//!
//! One thread is pinned to one processor and timed by the process's own time, so that a busy machine does not count; two or more by the
//! time of day, which means something on an idle machine only. Libraries of the Rust registry are linked in (`linked.rs`), those of
//! PyPI run in a worker each (`worker.rs`, `worker.py`).

mod linked;
mod worker;

use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use tesela::{
    Backend, Cpu, Device, Op, Runtime,
    backend::OpenOptions,
    bench::{Code, Format, Options, Record, Rival, Suite, measure_beside, time},
};

/// Measures Tesela and its peers in turns. The table is how many times as long as Tesela each peer takes.
#[derive(Parser)]
struct Args {
    /// A few cases, some minutes in all.
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
    /// Time for each case, in milliseconds.
    #[arg(long, default_value_t = 500)]
    ms: u64,
    /// Shapes of models: a JSON file with `bench.gemm`, a list of `k` and `n`.
    #[arg(long)]
    shapes: Option<PathBuf>,
    /// The Python that has the peers of PyPI.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Writes the records there, one a line.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    same_threads(args.threads);
    let mut open = OpenOptions::default();
    open.threads = args.threads;
    let cpu: Arc<dyn Backend> = Arc::new(Cpu::open(&open)?);
    let runtime = Runtime::builder().no_cache().device(cpu).build()?;
    let cpu = |d: &&Device| d.info().backend == "cpu" && d.info().threads == args.threads;
    let device = runtime.devices().iter().rfind(cpu).ok_or("no processor")?;
    let wanted = |name: &str| args.peers.is_empty() || args.peers.iter().any(|p| name.contains(p.as_str()));
    let (mut rivals, mut absent): (Vec<Box<dyn Rival>>, Vec<(String, String)>) = (Vec::new(), Vec::new());
    // These are built without threads: with more they would be no rivals.
    for one in linked::all(process_time).into_iter().filter(|r| wanted(r.name())) {
        match args.threads {
            1 => rivals.push(one),
            _ => absent.push((one.name().into(), "measured with one thread only".into())),
        }
    }
    for name in worker::NAMES.iter().filter(|n| wanted(n)) {
        match worker::Worker::start(&args.python, name, args.threads) {
            Ok(one) => rivals.push(Box::new(one)),
            Err(why) => absent.push((name.to_string(), why)),
        }
    }
    for (name, why) in &absent {
        eprintln!("absent: {name}: {why}");
    }
    let mut options = Options::new(Suite::Models);
    options.budget = Duration::from_millis(args.ms);
    options.weights = 512 << 20;
    options.clock = (args.threads == 1).then_some(process_time as fn() -> Duration);
    let (mut records, code) = (Vec::new(), Code::of_this_build());
    for op in cases(args)? {
        let mut refs: Vec<&mut dyn Rival> = rivals.iter_mut().map(|r| &mut **r as &mut dyn Rival).collect();
        let (more, left_out) = measure_beside(device, &op, &options, &code, &mut refs)?;
        for (name, why) in left_out {
            eprintln!("left out: {name}: {why}: {op}");
        }
        if let Some(own) = more.iter().find(|r| r.peer.is_none() && !r.correctness.why.is_empty()) {
            return Err(format!("Tesela is wrong: {}: {op}", own.correctness.why).into());
        }
        let repeat = format!("tools/peers --threads {} --op '{op}'", args.threads);
        records.extend(more.into_iter().map(|r| Record { repeat: repeat.clone(), ..r }));
        device.trim();
    }
    if let Some(path) = &args.out {
        fs::write(path, Format::Jsonl.write(&records))?;
    }
    println!("{}", table(&records, &absent));
    Ok(())
}

/// Shapes of products as `m, k, n`, each as f32 and as 8-bit integers.
fn cases(args: &Args) -> Result<Vec<Op>, Box<dyn std::error::Error>> {
    if let Some(op) = args.op {
        return Ok(vec![op]);
    }
    let mut shapes: Vec<(usize, usize, usize)> = [256, 512, 1024].iter().map(|&n| (n, n, n)).collect();
    shapes.extend([(333, 777, 555), (7, 1000, 13)]);
    shapes.extend([1, 8, 32, 128, 512].map(|m| (m, 2048, 2048)));
    if !args.quick {
        shapes.extend([(2048, 2048, 2048), (4096, 4096, 4096)]);
        shapes.extend([1, 8, 32, 128, 512].into_iter().flat_map(|m| [(m, 2048, 8192), (m, 8192, 2048)]));
    }
    if let Some(path) = &args.shapes {
        let file: serde_json::Value = serde_json::from_slice(&fs::read(path)?)?;
        let list = file["bench"]["gemm"].as_array().ok_or("no bench.gemm in the shapes")?;
        let size = |one: &serde_json::Value, key: &str| one[key].as_u64().unwrap_or(0) as usize;
        let fits = |&(_, k, n): &(usize, usize, usize)| k * n > 0 && k * n <= 1 << 27;
        let all = list.iter().flat_map(|one| [1, 8, 32, 128, 512].map(|m| (m, size(one, "k"), size(one, "n"))));
        shapes.extend(all.filter(fits));
    }
    let text = |&(m, k, n): &(usize, usize, usize)| {
        [("f32", "f32", "f32"), ("u8", "i8", "i32")]
            .map(|(x, w, out)| format!("matmul x={x}:{m}x{k} w={w}:{n}x{k} out={out}:{m}x{n}"))
    };
    let words = |t: &String| args.select.split_ascii_whitespace().all(|w| t.contains(w));
    let all = shapes.iter().flat_map(text).filter(words).map(|t| t.parse().map_err(Into::into));
    all.collect()
}

/// Every library is told the same number of threads, and one thread stays on one processor.
fn same_threads(threads: usize) {
    for name in ["RAYON", "OMP", "OPENBLAS", "MKL", "BLIS", "MATMUL", "RTEN"] {
        // SAFETY: called first in `main`, while the process has one thread.
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
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Markdown: a row per case, how many times as long each peer takes, the best peer last.
fn table(records: &[Record], absent: &[(String, String)]) -> String {
    let (mut order, mut rows) = (Vec::new(), BTreeMap::<&str, Vec<&Record>>::new());
    for r in records.iter().filter(|r| r.peer.is_some()) {
        let row = rows.entry(&r.identity.case).or_default();
        if row.is_empty() {
            order.push(&*r.identity.case);
        }
        row.push(r);
    }
    let name = |r: &Record| r.peer.as_ref().map_or(String::new(), |p| format!("{} {}", p.peer, p.version));
    let ratio = |r: &Record| r.peer.as_ref().map_or(0.0, |p| p.ratio);
    let mut names: Vec<String> = records.iter().filter(|r| r.peer.is_some()).map(name).collect();
    names.sort();
    names.dedup();
    let mut text =
        format!("| case | Tesela | {} | best |\n|---|--:|{}--:|\n", names.join(" | "), "--:|".repeat(names.len()));
    for case in order {
        let row = &rows[case];
        let cell = |n: &String| row.iter().find(|r| name(r) == *n).map_or("-".into(), |r| format!("{:.2}", ratio(r)));
        let best = row.iter().map(|r| ratio(r)).fold(f64::INFINITY, f64::min);
        let cells: Vec<String> = names.iter().map(cell).collect();
        text += &format!("| {case} | {} | {} | {best:.2} |\n", time(row[0].samples.median), cells.join(" | "));
    }
    for (name, why) in absent {
        text += &format!("\nabsent: {name}: {why}\n");
    }
    text
}
