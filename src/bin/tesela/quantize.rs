//! A model file to a smaller one.

use std::{path::PathBuf, time::Instant};

use clap::Args;
use indicatif::ProgressStyle;
use serde_json::json;
use tesela::gguf::{Gguf, Importance, Mix, Quantize};

use crate::{
    Outcome,
    output::{bar, print, table},
};

#[derive(Args)]
pub struct Arguments {
    /// The GGUF file to read, best of f32, f16 or bf16.
    input: PathBuf,
    /// The GGUF file to write; replaced only when the new one is complete.
    output: PathBuf,
    /// Q4_K_M, Q5_K_M, Q6_K, Q8_0, ...; a wrong one lists them all.
    #[arg(long = "type", value_name = "TYPE")]
    mix: Mix,
    /// Importance weights measured on text, as llama.cpp writes them (.gguf or .dat).
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Threads; 0 is what the process may use.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Arguments) -> Outcome {
    let file = Gguf::open(&args.input)?;
    let importance = args.imatrix.as_ref().map(Importance::open).transpose()?;
    let elements: usize = file.names().filter_map(|n| Some(file.tensor(n).ok()?.spec.numel())).sum();
    let bar = bar(&format!("quantizing to {}", args.mix));
    if let Ok(style) = ProgressStyle::with_template("{msg:32} [{bar:30}] {percent:>3} %, {eta} left") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_length(elements as u64);
    let begin = Instant::now();
    let progress = |n: usize| bar.inc(n as u64);
    let quantize = Quantize { importance: importance.as_ref(), threads: args.threads, progress: Some(&progress) };
    let done = quantize.run(&file, &args.output, args.mix);
    bar.finish_and_clear();
    let done = done?;
    let (seconds, bits) = (begin.elapsed().as_secs_f64(), done.bytes.1 as f64 * 8.0 / done.elements.max(1) as f64);
    if args.json {
        let tensor =
            |t: &(String, tesela::DType, tesela::DType)| json!({"name": t.0, "from": t.1.name(), "to": t.2.name()});
        let all = json!({"type": args.mix.name(), "output": args.output.display().to_string(), "seconds": seconds,
            "bytes_before": done.bytes.0, "bytes": done.bytes.1, "bits_per_weight": bits, "warnings": done.warnings,
            "tensors": done.tensors.iter().map(tensor).collect::<Vec<_>>()});
        return print(&format!("{all:#}\n"));
    }
    for warning in &done.warnings {
        eprintln!("warning: {warning}");
    }
    let mut kinds: Vec<(&str, &str, usize)> = Vec::new();
    for t in &done.tensors {
        match kinds.iter_mut().find(|k| (k.0, k.1) == (t.1.name(), t.2.name())) {
            Some(kind) => kind.2 += 1,
            None => kinds.push((t.1.name(), t.2.name(), 1)),
        }
    }
    let rows = kinds.iter().map(|k| vec![k.0.to_string(), k.1.to_string(), k.2.to_string()]).collect();
    let mib = |bytes: usize| bytes as f64 / (1u64 << 20) as f64;
    print(&table(&["FROM", "TO", "TENSORS"], rows))?;
    print(&format!(
        "{}: {:.1} MiB, was {:.1} MiB; {bits:.2} bits a weight; {seconds:.1} s\n",
        args.output.display(),
        mib(done.bytes.1),
        mib(done.bytes.0)
    ))
}
