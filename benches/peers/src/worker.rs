//! Libraries of PyPI, in a Python process each. A line of JSON asks, a line of JSON answers; operands and outputs are files.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tesela::{Op, bench::Rival};

/// What `python/worker.py` can be.
pub const NAMES: &[&str] =
    &["numpy", "blis", "onnxruntime", "torch", "ggml", "ggml repack", "ik_llama.cpp", "ik_llama.cpp repacked"];

pub struct Worker {
    python: PathBuf,
    threads: usize,
    name: String,
    version: String,
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
    file: PathBuf,
}

impl Worker {
    /// Starts the library's process; the reason where it is absent.
    pub fn start(python: &Path, name: &str, threads: usize) -> Result<Worker, String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/worker.py");
        let mut command = Command::new(python);
        command.args([script, name, &threads.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", python.display()))?;
        let (Some(ask), Some(answer)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        let file = std::env::temp_dir().join(format!("tesela-peers-{}-{name}", std::process::id()));
        let answer = BufReader::new(answer);
        let mut worker = Worker {
            python: python.into(),
            threads,
            name: name.into(),
            version: String::new(),
            child,
            ask,
            answer,
            file,
        };
        worker.version = worker.hear()?["version"].as_str().unwrap_or_default().into();
        Ok(worker)
    }

    fn say(&mut self, question: Value) -> Result<Value, String> {
        writeln!(self.ask, "{question}").map_err(|e| e.to_string())?;
        self.hear()
    }

    fn hear(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.answer.read_line(&mut line) {
            Ok(0) | Err(_) => return Err("its process ended".into()),
            Ok(_) => {}
        }
        let answer: Value = serde_json::from_str(&line).map_err(|e| format!("{e}: {line}"))?;
        match answer["error"].as_str() {
            Some(why) => Err(why.into()),
            None => Ok(answer),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.file);
    }
}

impl Rival for Worker {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn prepare(&mut self, op: &Op, operands: &[Vec<u8>], sets: usize) -> Result<(), String> {
        if !matches!(self.child.try_wait(), Ok(None)) {
            *self = Worker::start(&self.python.clone(), &self.name.clone(), self.threads)?; // it aborted on the last operation
        }
        fs::write(&self.file, operands.concat()).map_err(|e| e.to_string())?;
        let sizes: Vec<(&str, usize)> = op.operands().iter().zip(operands).map(|(o, b)| (o.name, b.len())).collect();
        let file = self.file.clone();
        let question = json!({"do": "prepare", "op": op.to_string(), "file": file, "sizes": sizes, "sets": sets});
        self.say(question).map(|_| ())
    }

    fn time(&mut self, launches: usize) -> Result<Duration, String> {
        let answer = self.say(json!({"do": "time", "launches": launches}))?;
        answer["ns"].as_u64().map(Duration::from_nanos).ok_or_else(|| "no time".into())
    }

    fn output(&mut self) -> Result<Vec<u8>, String> {
        let file = self.file.clone();
        self.say(json!({"do": "output", "file": file}))?;
        fs::read(&self.file).map_err(|e| e.to_string())
    }
}
