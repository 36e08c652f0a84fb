//! Everything in under a minute: devices, a quick verification, the quick suite, the picks, the report.

use std::{collections::BTreeMap, path::Path};

use serde_json::json;
use tesela::{
    backend::Kind,
    bench::{self, Format, Record, Suite, page, rate, share, time},
    conformance::{self, Report},
};

use crate::{
    Common, Outcome, bench_devices, device_table,
    output::{print, save, table},
    verdict, verify_device,
};

pub fn run(out_dir: &Path, common: &Common) -> Outcome {
    let found = common.open();
    let say = |text: &str| if common.json { Ok(true) } else { print(text) };
    say(&device_table(&found))?;
    let options = conformance::Options { quick: true, ..conformance::Options::default() };
    let mut reports: Vec<Report> = Vec::new();
    say("\n")?;
    for device in &found.devices {
        let report = verify_device(&**device, &options);
        say(&(verdict(&report) + "\n"))?;
        reports.push(report);
    }
    // The reference answers for the others; it is not in the race unless it runs alone.
    let mut runners = found.devices.clone();
    runners.retain(|d| d.info().kind != Kind::Reference);
    let runners = if runners.is_empty() { &found.devices } else { &runners };
    let results = bench_devices(runners, &bench::Options::new(Suite::Quick), &mut |_| {})?;
    // A GPU in software is measured, and picked only where nothing else runs the operation.
    let last = |id: &str| runners.iter().any(|d| d.info().id == id && d.info().kind == Kind::SoftwareGpu);
    let picks = picks(&results.records, last);
    say(&format!("\n{}", record_table(&picks)))?;
    std::fs::create_dir_all(out_dir)
        .map_err(|e| crate::Stop::Failed(format!("cannot make {}: {e}", out_dir.display())))?;
    let (html, jsonl) = (out_dir.join("tesela-report.html"), out_dir.join("tesela-report.jsonl"));
    save(&html, &page(&results.records, &reports))?;
    save(&jsonl, &Format::Jsonl.write(&results.records))?;
    say(&format!("\nreport: {}\nrecords: {}\n", html.display(), jsonl.display()))?;
    let passed = results.passed() && reports.iter().all(Report::passed);
    if common.json {
        let pick = |r: &Record| {
            json!({"op": r.identity.case, "device": r.device.id, "kernel": r.code.kernel, "median_ns": r.samples.median,
                "fraction_of_peak": r.derived.fraction_of_peak, "bound": r.derived.bound})
        };
        let device = |r: &Report| {
            let count = |v| r.with(v).count();
            json!({"id": r.device.id, "backend": r.device.backend, "name": r.device.name,
                "passed": count(conformance::Verdict::Passed), "declined": count(conformance::Verdict::Declined),
                "failed": count(conformance::Verdict::Failed)})
        };
        let absent = found.absent.iter().map(|a| json!({"backend": a.backend, "why": a.why}));
        let all = json!({"passed": passed, "devices": reports.iter().map(device).collect::<Vec<_>>(),
            "absent": absent.collect::<Vec<_>>(), "picks": picks.iter().map(pick).collect::<Vec<_>>(),
            "report": html.display().to_string(), "records": jsonl.display().to_string()});
        print(&format!("{all:#}\n"))?;
    }
    for r in results.records.iter().filter(|r| !r.correctness.why.is_empty()) {
        eprintln!("wrong: {} {}: {}", r.code.kernel, r.identity.case, r.correctness.why);
    }
    Ok(passed)
}

/// The fastest right record of each operation, in the order measured. Devices that are a last resort come last.
fn picks(records: &[Record], last: impl Fn(&str) -> bool) -> Vec<Record> {
    let rank = |r: &Record| (last(&r.device.id), r.samples.median);
    let mut best: BTreeMap<&str, &Record> = BTreeMap::new();
    for r in records.iter().filter(|r| r.correctness.why.is_empty()) {
        let entry = best.entry(&r.identity.case).or_insert(r);
        if rank(r) < rank(entry) {
            *entry = r;
        }
    }
    records.iter().filter_map(|r| best.remove(r.identity.case.as_str())).cloned().collect()
}

/// A line a record. Operations are shortened: the records hold them whole.
pub fn record_table(records: &[Record]) -> String {
    let row = |r: &Record| {
        let peak = share(r);
        let right = if r.correctness.why.is_empty() { "right" } else { "WRONG" };
        let text = [&time(r.samples.median), &rate(r), &peak, &r.derived.bound, right];
        let mut row = vec![short(&r.identity.case), r.code.kernel.clone()];
        row.extend(text.iter().map(|t| t.to_string()));
        row
    };
    table(&["OPERATION", "KERNEL", "MEDIAN", "RATE", "OF PEAK", "BOUND", "RESULT"], records.iter().map(row).collect())
}

fn short(case: &str) -> String {
    const WIDTH: usize = 64;
    if case.chars().count() <= WIDTH {
        return case.into();
    }
    case.chars().take(WIDTH - 1).chain(['…']).collect()
}
