//! The command: what is on this machine, is it right, how fast is it.

mod output;
#[cfg(feature = "gguf")]
mod quantize;
mod survey;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use tesela::{
    Backend, Discovery, Error, Op, Runtime,
    backend::OpenOptions,
    bench::{self, Suite},
    conformance::{self, Level, Report, Verdict},
    discover,
};

use output::{bar, print, save, table};

/// Finds this machine's devices, verifies and measures them. Without a subcommand: all of it in under a minute, with a
/// report to open in a browser.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    survey: Survey,
}

#[derive(Args)]
struct Survey {
    /// Where tesela-report.html and tesela-report.jsonl are written.
    #[arg(long, default_value = ".")]
    out_dir: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// What every subcommand takes.
#[derive(Args)]
struct Common {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Threads of the CPU device; 0 is what the process may use.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

#[derive(Subcommand)]
enum Command {
    /// List the devices found, and those absent with the reason.
    Devices(Common),
    /// Run the conformance cases: every kernel against the f64 reference, and the contract.
    Verify(Verify),
    /// Measure every kernel of a suite of operations.
    Bench(Bench),
    /// Say which kernel on which device runs an operation, and why: tesela explain matmul x=f32:8x64 w=q8_0:32x64 out=f32:8x32
    Explain {
        /// The operation's text.
        #[arg(required = true)]
        op: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Quantize a model file: tesela quantize model-f16.gguf model-q4.gguf --type Q4_K_M
    #[cfg(feature = "gguf")]
    Quantize(quantize::Arguments),
}

#[derive(Args)]
struct Verify {
    /// Backends or device ids; default: all found.
    #[arg(long)]
    device: Vec<String>,
    /// core, quant, attention, ssm or determinism; default: all.
    #[arg(long)]
    level: Vec<Level>,
    /// Words that a case's text must have, or the text of an operation or a case.
    #[arg(long)]
    filter: Option<String>,
    /// A few cases of each operation.
    #[arg(long)]
    quick: bool,
    /// Seconds of random operations after the listed ones.
    #[arg(long, default_value_t = 0)]
    fuzz: u64,
    /// Which random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write a certificate (JSON).
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Write JUnit (XML).
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write a support matrix (Markdown).
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Bench {
    /// quick, models, square, decode, attention, ssm, large or between.
    #[arg(long, default_value = "quick")]
    suite: Suite,
    /// Backends or device ids; default: all found but the reference.
    #[arg(long)]
    device: Vec<String>,
    /// Words that an operation's text must have, or the text of any operation.
    #[arg(long)]
    filter: Option<String>,
    /// Milliseconds for each operation and device.
    #[arg(long)]
    budget: Option<u64>,
    /// Seconds after which what was not measured is left out.
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
    /// Which random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the results; without it they are printed.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// jsonl, bencher, github-smaller, github-bigger, csv, markdown or html; default: by the file's ending, else a table.
    #[arg(long)]
    format: Option<bench::Format>,
    #[command(flatten)]
    common: Common,
}

/// Why the command ends early.
enum Stop {
    /// The user must ask differently: exit code 2.
    Usage(String),
    /// A check failed, or a device or file did: exit code 1.
    Failed(String),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Stop {
        match e {
            Error::Invalid { .. } => Stop::Usage(e.to_string()),
            other => Stop::Failed(other.to_string()),
        }
    }
}

/// True: everything that was checked is right.
type Outcome = Result<bool, Stop>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => survey::run(&cli.survey.out_dir, &cli.survey.common),
        Some(Command::Devices(common)) => devices(&common),
        Some(Command::Verify(args)) => verify(args),
        Some(Command::Bench(args)) => measure(args),
        Some(Command::Explain { op, common }) => explain(&op.join(" "), &common),
        #[cfg(feature = "gguf")]
        Some(Command::Quantize(args)) => quantize::run(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Stop::Failed(why)) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
        Err(Stop::Usage(why)) => {
            eprintln!("error: {why}\ntry: tesela --help");
            ExitCode::from(2)
        }
    }
}

impl Common {
    fn open(&self) -> Discovery {
        let mut options = OpenOptions::default();
        options.threads = self.threads;
        discover(&options)
    }

    /// The devices named; all that `default` accepts where none is.
    fn choose(&self, names: &[String], default: fn(&dyn Backend) -> bool) -> Result<Vec<Arc<dyn Backend>>, Stop> {
        let found = self.open();
        let named = |d: &Arc<dyn Backend>, n: &String| d.info().backend == *n || d.info().id == *n;
        for name in names {
            if !found.devices.iter().any(|d| named(d, name)) {
                let known: Vec<&str> = found.devices.iter().map(|d| d.info().id.as_str()).collect();
                let absent = found.absent.iter().find(|a| a.backend == name).map_or("", |a| a.why.as_str());
                return Err(Stop::Usage(format!("no device {name:?} {absent}; there are: {}", known.join(", "))));
            }
        }
        let wanted =
            |d: &Arc<dyn Backend>| if names.is_empty() { default(&**d) } else { names.iter().any(|n| named(d, n)) };
        Ok(found.devices.into_iter().filter(wanted).collect())
    }
}

fn devices(common: &Common) -> Outcome {
    let found = common.open();
    if common.json {
        let device = |d: &Arc<dyn Backend>| {
            let i = d.info();
            json!({"backend": i.backend, "name": i.name, "kind": i.kind.name(), "id": i.id, "driver": i.driver,
                "memory": i.memory, "max_buffer": i.max_buffer, "threads": i.threads})
        };
        let absent = found.absent.iter().map(|a| json!({"backend": a.backend, "why": a.why}));
        let devices = found.devices.iter().map(device).collect::<Vec<_>>();
        return print(&format!("{:#}\n", json!({"devices": devices, "absent": absent.collect::<Vec<_>>()})));
    }
    print(&device_table(&found))
}

fn device_table(found: &Discovery) -> String {
    let row = |d: &Arc<dyn Backend>| {
        let i = d.info();
        let memory =
            if i.memory > 0 { format!("{:.1} GiB", i.memory as f64 / (1u64 << 30) as f64) } else { "-".into() };
        vec![i.backend.clone(), i.name.clone(), i.kind.to_string(), i.driver.clone(), memory, i.id.clone()]
    };
    let mut text =
        table(&["BACKEND", "NAME", "KIND", "DRIVER", "MEMORY", "ID"], found.devices.iter().map(row).collect());
    for a in &found.absent {
        text += &format!("no {}: {}\n", a.backend, a.why);
    }
    text
}

/// Verifies one device with a bar of its progress.
fn verify_device(device: &dyn Backend, options: &conformance::Options) -> Report {
    let bar = bar(&format!("verifying {}", device.info().backend));
    let report = conformance::check_with(device, options, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    report
}

fn verify(args: Verify) -> Outcome {
    let options = conformance::Options {
        levels: args.level,
        filter: args.filter,
        quick: args.quick,
        budget: Duration::from_secs(args.fuzz),
        seed: args.seed,
    };
    let devices = args.common.choose(&args.device, |_| true)?;
    let reports: Vec<Report> = devices.iter().map(|d| verify_device(&**d, &options)).collect();
    if let Some(why) = reports.iter().find_map(|r| r.refused.clone()) {
        return Err(Stop::Usage(why));
    }
    if reports.iter().all(|r| r.outcomes.is_empty()) {
        return Err(Stop::Usage("no case has all the words of the filter".into()));
    }
    let certificates: Vec<String> = reports.iter().filter_map(|r| r.to_json().ok()).collect();
    let certificate = match certificates.as_slice() {
        [one] => one.clone(),
        several => format!("[\n{}\n]", several.join(",\n")),
    };
    let suites: String = reports.iter().map(|r| r.to_junit()).collect();
    let suites = suites.replace("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n", "");
    let junit = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n{suites}</testsuites>\n");
    let markdown: String = reports.iter().map(|r| r.to_markdown() + "\n").collect();
    for (file, text) in [(args.certificate, &certificate), (args.junit, &junit), (args.markdown, &markdown)] {
        if let Some(path) = file {
            save(&path, text)?;
        }
    }
    if args.common.json {
        print(&(certificate + "\n"))?;
    } else {
        for report in &reports {
            print(&(verdict(report) + "\n"))?;
        }
    }
    Ok(reports.iter().all(Report::passed))
}

/// A line for the device, and for failures a command each.
fn verdict(report: &Report) -> String {
    let count = |v| report.with(v).count();
    let mut text = format!(
        "{}: {} passed, {} declined, {} failed in {:.1} s",
        report.device,
        count(Verdict::Passed),
        count(Verdict::Declined),
        count(Verdict::Failed),
        report.elapsed.as_secs_f64()
    );
    for o in report.with(Verdict::Failed).take(20) {
        text += &format!("\n  {} {}\n    {}", o.kernel, o.id, o.why);
        text += &format!("\n    repeat: tesela verify --device '{}' --filter '{}'", report.device.id, o.id);
    }
    match count(Verdict::Failed).saturating_sub(20) {
        0 => text,
        more => text + &format!("\n  and {more} more: see --certificate FILE"),
    }
}

fn measure(args: Bench) -> Outcome {
    let mut options = bench::Options::new(args.suite);
    (options.filter, options.seed) = (args.filter, args.seed);
    if let Some(ms) = args.budget {
        options.budget = Duration::from_millis(ms);
    }
    if let Some(seconds) = args.limit {
        options.limit = Duration::from_secs(seconds);
    }
    let devices = args.common.choose(&args.device, |d| d.info().kind != tesela::backend::Kind::Reference)?;
    let ending = args.out.as_ref().and_then(|p| p.extension()?.to_str());
    let format = args.format.or(match ending {
        Some("csv") => Some(bench::Format::Csv),
        Some("md") => Some(bench::Format::Markdown),
        Some("html") => Some(bench::Format::Html),
        Some(_) => Some(bench::Format::Jsonl),
        None if args.common.json => Some(bench::Format::Jsonl),
        None => None,
    });
    let mut kept = Instant::now();
    let results = bench_devices(&devices, &options, &mut |so_far| {
        // Lines are written as they come; a failure to is told at the end.
        let due = !so_far.records.is_empty() && kept.elapsed() > Duration::from_secs(1);
        if let (Some(path), Some(bench::Format::Jsonl), true) = (&args.out, format, due) {
            let _ = save(path, &bench::Format::Jsonl.write(&so_far.records));
            kept = Instant::now();
        }
    })?;
    let text = format.map_or_else(|| survey::record_table(&results.records), |f| f.write(&results.records));
    match &args.out {
        Some(path) => save(path, &text)?,
        None => {
            print(&text)?;
        }
    }
    for r in results.records.iter().filter(|r| !r.correctness.why.is_empty()) {
        eprintln!("wrong: {} {}: {}", r.code.kernel, r.identity.case, r.correctness.why);
    }
    if results.records.is_empty() {
        let why = results.left_out.first().map_or("no device", |l| l.2.as_str());
        return Err(Stop::Failed(format!("nothing was measured: {why}")));
    }
    Ok(results.passed())
}

/// `keep` is given what came of the operations so far.
fn bench_devices(
    devices: &[Arc<dyn Backend>],
    options: &bench::Options,
    keep: &mut dyn FnMut(&bench::Results),
) -> Result<bench::Results, Stop> {
    let bar = bar("measuring");
    let results = bench::run(devices, options, &mut |what, done, total, so_far| {
        keep(so_far);
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(format!("measuring {what}"));
    });
    bar.finish_and_clear();
    Ok(results?)
}

fn explain(text: &str, common: &Common) -> Outcome {
    let op: Op = text.parse()?;
    let rt = Runtime::builder().threads(common.threads).build()?;
    let e = rt.explain(&op)?;
    rt.warnings().iter().for_each(|w| eprintln!("warning: {w}"));
    if !common.json {
        return print(&e.to_string());
    }
    let chosen = e.chosen.as_ref().map(|c| json!({"device": c.device, "kernel": c.kernel, "how": c.how.name()}));
    let candidates = e.candidates.iter().map(|c| {
        json!({"device": c.device, "kernel": c.kernel, "seconds": c.time.map(|t| t.as_secs_f64()), "fraction_of_peak": c.fraction_of_peak})
    });
    let declined = e.declined.iter().map(|d| json!({"device": d.device, "why": d.why}));
    let all = json!({"op": op.to_string(), "chosen": chosen, "candidates": candidates.collect::<Vec<_>>(),
        "declined": declined.collect::<Vec<_>>()});
    print(&format!("{all:#}\n"))
}
