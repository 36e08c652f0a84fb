//! Records as the files that dashboards read.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::{Map, Value, json};

use super::{Record, page};
use crate::op::words;

words! {
    /// A way to write records down.
    Format {
        /// One record a line.
        Jsonl = "jsonl",
        /// Bencher Metric Format.
        Bencher = "bencher",
        /// github-action-benchmark, `customSmallerIsBetter`: times.
        GithubSmaller = "github-smaller",
        /// github-action-benchmark, `customBiggerIsBetter`: throughput.
        GithubBigger = "github-bigger",
        /// One row a record.
        Csv = "csv",
        /// A table a device.
        Markdown = "markdown",
        /// One self-contained page.
        Html = "html",
    }
}

impl Format {
    /// The file's text.
    pub fn write(self, records: &[Record]) -> String {
        // Rows about peers repeat a kernel's own: only what shows peers wants them.
        let own: Vec<Record> = match self {
            Format::Jsonl | Format::Html => Vec::new(),
            _ => records.iter().filter(|r| r.peer.is_none()).cloned().collect(),
        };
        match self {
            Format::Jsonl => jsonl(records),
            Format::Bencher => bencher(&own),
            Format::GithubSmaller => github(&own, false),
            Format::GithubBigger => github(&own, true),
            Format::Csv => csv(&own),
            Format::Markdown => markdown(&own),
            Format::Html => page(records, &[]),
        }
    }
}

fn jsonl(records: &[Record]) -> String {
    records.iter().filter_map(|r| serde_json::to_string(r).ok()).fold(String::new(), |all, line| all + &line + "\n")
}

/// A series' name: the operation and what ran it.
fn series(r: &Record) -> String {
    format!("{} [{} {}]", r.identity.case, r.device.id, r.code.kernel)
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn bencher(records: &[Record]) -> String {
    let one = |r: &Record| {
        let s = &r.samples;
        let rate = |ns: u64| if ns > 0 { r.derived.flops as f64 / ns as f64 * 1e9 } else { 0.0 };
        let mut measures = Map::new();
        measures.insert("latency".into(), json!({"value": s.median, "lower_value": s.q1, "upper_value": s.q3}));
        if r.derived.flops > 0 {
            let value = json!({"value": rate(s.median), "lower_value": rate(s.q3), "upper_value": rate(s.q1)});
            measures.insert("throughput".into(), value);
        }
        (series(r), Value::Object(measures))
    };
    pretty(&Value::Object(records.iter().map(one).collect()))
}

fn github(records: &[Record], bigger: bool) -> String {
    let one = |r: &Record| {
        let s = &r.samples;
        let extra = format!("{}\n{}", r.repeat, r.device.driver);
        if bigger {
            let (unit, amount) =
                if r.derived.flops > 0 { ("GFLOP/s", r.derived.flops) } else { ("GB/s", r.derived.bytes) };
            let rate = |ns: u64| amount as f64 / ns.max(1) as f64;
            let range = format!("± {:.3}", (rate(s.q1) - rate(s.q3)) / 2.0);
            json!({"name": series(r), "unit": unit, "value": rate(s.median), "range": range, "extra": extra})
        } else {
            let range = format!("± {}", (s.q3 - s.q1) / 2);
            json!({"name": series(r), "unit": "ns", "value": s.median, "range": range, "extra": extra})
        }
    };
    pretty(&records.iter().map(one).collect())
}

fn csv(records: &[Record]) -> String {
    let mut text = String::from(
        "case,suite,op,format,backend,device,kernel,picked_by,median_ns,q1_ns,q3_ns,flops_per_second,bytes_per_second,fraction_of_peak,bound,checked,max_rel,nmse,commit\n",
    );
    for r in records {
        let (s, d, c) = (&r.samples, &r.derived, &r.correctness);
        let quoted = |t: &str| format!("\"{}\"", t.replace('"', "\"\""));
        let fraction = d.fraction_of_peak.map_or(String::new(), |f| format!("{f:.4}"));
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{},{},{},{},{},{:.4e},{:.4e},{},{},{},{:.3e},{:.3e},{}",
            quoted(&r.identity.case),
            r.identity.suite,
            r.identity.op,
            r.identity.format,
            r.device.backend,
            quoted(&r.device.id),
            r.code.kernel,
            r.code.picked_by,
            s.median,
            s.q1,
            s.q3,
            d.flops_per_second,
            d.bytes_per_second,
            fraction,
            d.bound,
            c.checked && c.why.is_empty(),
            c.max_rel,
            c.nmse,
            r.code.commit
        );
    }
    text
}

fn markdown(records: &[Record]) -> String {
    let mut devices: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for r in records {
        devices.entry(&r.device.id).or_default().push(r);
    }
    let mut text = String::new();
    for (id, records) in devices {
        let _ = writeln!(text, "## {} ({id})\n", records[0].device.name);
        text += "| operation | kernel | median | rate | of peak | bound | checked |\n|---|---|--:|--:|--:|---|---|\n";
        for r in records {
            let fraction = share(r);
            let star = if r.code.picked_by == "measured" { " *" } else { "" };
            let checked = if r.correctness.why.is_empty() { "yes" } else { &r.correctness.why };
            let _ = writeln!(
                text,
                "| {} | {}{star} | {} | {} | {fraction} | {} | {checked} |",
                r.identity.case,
                r.code.kernel,
                time(r.samples.median),
                rate(r),
                r.derived.bound
            );
        }
        text += "\n";
    }
    text + "\\* the device's fastest kernel for the operation\n"
}

/// Nanoseconds for people.
pub fn time(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

/// The fraction of the measured peak. More than all of the memory's rate means that the data came from a cache.
pub fn share(r: &Record) -> String {
    match r.derived.fraction_of_peak {
        None => "-".into(),
        Some(f) if f > 1.0 && r.derived.bound == "memory" => "in cache".into(),
        Some(f) => format!("{:.0} %", f * 100.0),
    }
}

/// Throughput in the unit of what binds, or is likelier to.
pub fn rate(r: &Record) -> String {
    let d = &r.derived;
    let arithmetic = d.bound == "compute" || (d.bound == "unknown" && d.flops > 8 * d.bytes);
    let (value, unit) = if arithmetic { (d.flops_per_second, "FLOP/s") } else { (d.bytes_per_second, "B/s") };
    match value {
        1e12.. => format!("{:.2} T{unit}", value / 1e12),
        1e9.. => format!("{:.1} G{unit}", value / 1e9),
        _ => format!("{:.1} M{unit}", value / 1e6),
    }
}
