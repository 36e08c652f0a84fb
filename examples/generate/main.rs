//! A decoder in miniature: text from a GGUF file of the llama or granite architecture, through the public API only.
//!
//! `cargo run --release --example generate -- --model model.gguf --prompt "Once upon a time"`

mod config;
mod model;
mod tokenizer;

use std::{
    io::{Write, stdout},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use model::{Model, Session};
use tesela::{Error, Result, Runtime, gguf::Gguf, op::Numerics};
use tokenizer::Tokenizer;

/// Continues a text with a language model from a GGUF file.
#[derive(Parser)]
struct Args {
    /// The model's file
    #[arg(long)]
    model: PathBuf,
    /// The text to continue
    #[arg(long, default_value = "Once upon a time")]
    prompt: String,
    /// The most tokens to generate
    #[arg(long, default_value_t = 100)]
    tokens: usize,
    /// `exact`, or `fast`: 8-bit activations allowed
    #[arg(long, default_value = "exact")]
    numerics: Numerics,
    /// A backend (cpu, wgpu, cuda, reference) or a device's id; the fastest unless given
    #[arg(long)]
    device: Option<String>,
    /// Threads of the CPU; all that the process may use unless given
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// 0 takes the likeliest token each time
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Another one gives another text, where the temperature is not 0
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Prints one JSON object instead of the text
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let file = Gguf::open(&args.model)?;
    let tokenizer = Tokenizer::load(&file)?;
    let mut builder = Runtime::builder().threads(args.threads).numerics(args.numerics);
    if let Some(device) = &args.device {
        builder = builder.allow(&[device]);
    }
    let runtime = builder.build()?;
    let model = Model::load(&runtime, &file)?;
    let loaded = start.elapsed();

    let prompt = tokenizer.encode(&args.prompt);
    let room = model.config.context.saturating_sub(prompt.len());
    if prompt.is_empty() || room == 0 || tokenizer.len() > model.vocabulary() {
        let why = format!(
            "a prompt of {} tokens with {} known to the model's {} rows of embeddings, and room for {}",
            prompt.len(),
            tokenizer.len(),
            model.vocabulary(),
            model.config.context
        );
        return Err(Error::invalid("generate", why));
    }
    let tokens = args.tokens.min(room);
    // Rounded up, so that texts of about the same length share their kernels' plans.
    let capacity = (prompt.len() + tokens).next_multiple_of(256).min(model.config.context);
    let mut session = Session::new(&model, capacity)?;

    let begin = Instant::now();
    session.prefill(&prompt)?;
    let logits = if args.json { session.logits()? } else { Vec::new() };
    let mut ids = Vec::with_capacity(tokens);
    let mut first = Duration::ZERO;
    if !args.json {
        print(args.prompt.as_bytes());
    }
    while ids.len() < tokens {
        let id = session.sample(args.temperature, args.seed)?;
        if ids.is_empty() {
            first = begin.elapsed();
        }
        if tokenizer.is_end(id) {
            break;
        }
        ids.push(id);
        if !args.json {
            print(&tokenizer.bytes(id));
        }
        if ids.len() < tokens {
            session.advance()?;
        }
    }
    let rest = begin.elapsed().saturating_sub(first).as_secs_f64();
    let rate = if ids.len() > 1 { (ids.len() - 1) as f64 / rest } else { 0.0 };

    if args.json {
        let all: Vec<u32> = prompt.iter().chain(&ids).copied().collect();
        let kernels: Vec<_> = runtime
            .report()
            .iter()
            .map(|p| serde_json::json!({"op": p.op, "device": p.device, "kernel": p.kernel, "launches": p.launches}))
            .collect();
        let report = serde_json::json!({
            "prompt_ids": prompt, "ids": ids, "text": tokenizer.decode(&all), "logits": logits,
            "device": model.device(), "kernels": kernels, "load_seconds": loaded.as_secs_f64(),
            "first_token_seconds": first.as_secs_f64(), "tokens_per_second": rate,
        });
        println!("{report}");
    } else {
        println!();
        eprintln!("{}: {rate:.1} tokens/s, first token after {first:.1?}, loaded in {loaded:.1?}", model.device());
    }
    Ok(())
}

/// Prints a piece of text at once; where nobody reads it, there is nothing to do about that.
fn print(bytes: &[u8]) {
    let _ = stdout().write_all(bytes).and_then(|()| stdout().flush());
}
