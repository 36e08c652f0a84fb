//! What was measured, kept in memory and on disk. The file is only ever a hint: whatever is wrong with it is a warning.
//!
//! One line per record, fields separated by tabs, after a first line that names the format:
//! `device id, driver (with its threads), crate version, operation of the class, kernel, nanoseconds`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use crate::backend::DeviceInfo;

const HEADER: &str = "tesela measurements 1";
const FILE: &str = "measured.tsv";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A file beyond this was not written by us.
const LARGEST: u64 = 16 << 20;

/// Measured times by device, class and kernel.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    path: Option<PathBuf>,
    times: BTreeMap<String, (Duration, Origin)>,
    warnings: Vec<String>,
}

/// Where a time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Measured by this process.
    Here,
    /// Read from the file.
    File,
}

impl Memory {
    /// Reads the directory's file, where there is one.
    pub(crate) fn open(directory: Option<&Path>) -> Memory {
        let path = directory.map(|d| d.join(FILE));
        let mut state = State { path, ..State::default() };
        if let Some(path) = &state.path {
            match load(path) {
                Ok(times) => state.times = times,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => state.warnings.push(format!("measurements in {} are ignored: {e}", path.display())),
            }
        }
        Memory(Mutex::new(state))
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.lock().warnings.clone()
    }

    pub(crate) fn get(&self, device: &DeviceInfo, class: &str, kernel: &str) -> Option<(Duration, Origin)> {
        self.lock().times.get(&key(device, class, kernel)).copied()
    }

    /// Keeps new times, and writes them through to the file.
    pub(crate) fn put(&self, device: &DeviceInfo, class: &str, times: impl Iterator<Item = (String, Duration)>) {
        let mut state = self.lock();
        for (kernel, time) in times {
            state.times.insert(key(device, class, &kernel), (time, Origin::Here));
        }
        let Some(path) = state.path.clone() else { return };
        // Another process may have written meanwhile: its records are kept, except where a driver or version was replaced.
        let prefix = format!("{}\t", clean(&device.id));
        // (Another number of threads is no other driver.)
        let current = format!("{prefix}{}", clean(&device.driver));
        let versioned = format!("\t{VERSION}\t");
        let stale = |key: &str| key.starts_with(&prefix) && !(key.starts_with(&current) && key.contains(&versioned));
        let mut all = load(&path).unwrap_or_default();
        all.extend(state.times.iter().map(|(k, v)| (k.clone(), *v)));
        all.retain(|key, _| !stale(key));
        if let Err(e) = save(&path, &all) {
            let warning = format!("measurements cannot be kept in {}: {e}", path.display());
            if !state.warnings.contains(&warning) {
                state.warnings.push(warning);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The directory used where the caller names none: `$XDG_CACHE_HOME/tesela`, or `~/.cache/tesela`.
pub(crate) fn default_directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("LOCALAPPDATA")).or_else(|| set("HOME").map(|h| h.join(".cache")));
    base.filter(|p| p.is_absolute()).map(|p| p.join("tesela"))
}

fn clean(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}

fn key(device: &DeviceInfo, class: &str, kernel: &str) -> String {
    let threads = if device.threads > 0 { format!(" x{}", device.threads) } else { String::new() };
    [clean(&device.id), clean(&device.driver) + &threads, VERSION.into(), clean(class), clean(kernel)].join("\t")
}

fn load(path: &Path) -> io::Result<BTreeMap<String, (Duration, Origin)>> {
    if fs::metadata(path)?.len() > LARGEST {
        return Err(io::Error::other("too large"));
    }
    let text = fs::read_to_string(path)?;
    let corrupt = |line: usize| io::Error::other(format!("line {line} is not a measurement; delete the file"));
    let mut lines = text.lines().enumerate();
    if lines.next().is_none_or(|(_, first)| first != HEADER) {
        return Err(io::Error::other("not of this version; it will be replaced"));
    }
    lines
        .map(|(i, line)| {
            let (key, time) = line.rsplit_once('\t').ok_or_else(|| corrupt(i + 1))?;
            let nanos: u64 = time.parse().map_err(|_| corrupt(i + 1))?;
            if key.split('\t').count() != 5 || nanos == 0 {
                return Err(corrupt(i + 1));
            }
            Ok((key.to_string(), (Duration::from_nanos(nanos), Origin::File)))
        })
        .collect()
}

/// Written beside and renamed, so that a reader sees the old file or the new one.
fn save(path: &Path, times: &BTreeMap<String, (Duration, Origin)>) -> io::Result<()> {
    let mut text = format!("{HEADER}\n");
    for (key, (time, _)) in times {
        let _ = writeln!(text, "{key}\t{}", time.as_nanos().max(1)); // a String takes everything
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let beside = path.with_extension(format!("{}.{:?}", std::process::id(), std::thread::current().id()));
    let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside); // nothing more can be done about it
    }
    written
}
