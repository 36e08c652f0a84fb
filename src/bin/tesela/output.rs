//! Terminal and files.

use std::{
    io::{ErrorKind, Write},
    path::Path,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{Outcome, Stop};

/// To the standard output. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Stop::Failed(format!("standard output: {e}"))),
        _ => Ok(true),
    }
}

/// Into a file.
pub fn save(path: &Path, text: &str) -> Result<(), Stop> {
    let fail = |e| Stop::Failed(format!("cannot write {}: {e}; choose another place", path.display()));
    std::fs::write(path, text).map_err(fail)
}

/// Columns as wide as their widest cell; the last is not padded.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let cells = std::iter::once(head.iter().map(|h| h.to_string()).collect()).chain(rows).collect::<Vec<Vec<String>>>();
    let width = |c: usize| cells.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(s, w)| format!("{s:w$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    cells.iter().map(line).collect()
}

/// A bar on the standard error; hidden where that is no terminal.
pub fn bar(message: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:32} [{bar:30}] {pos}/{len} {elapsed}");
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    bar.with_message(message.to_string())
}
