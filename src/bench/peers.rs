//! Records with peers as Markdown.

use std::collections::BTreeMap;

use super::{Record, share, time};

type Groups<'a> = BTreeMap<(usize, String), Vec<&'a Record>>;

/// By threads and kind of operation.
fn groups(records: &[Record]) -> Groups<'_> {
    let mut groups = Groups::new();
    for r in records.iter().filter(|r| r.peer.is_some()) {
        groups.entry((r.conditions.threads, kind(r))).or_default().push(r);
    }
    groups
}

/// Markdown, a row for each number of threads and kind of operation: of how many cases the fastest kernel takes no longer than any peer,
/// and how many times as long as the kernel the best peer takes, in the middle and at worst.
pub fn peer_summary(records: &[Record]) -> String {
    let mut text = String::from(
        "| threads | operations | cases | no peer faster | best peer's time / ours, median | lowest | of the limit, median |\n|--:|---|--:|--:|--:|--:|--:|\n",
    );
    for ((threads, kind), list) in &groups(records) {
        let cases = cases(list);
        let mut best: Vec<f64> = cases.iter().map(|(_, rows)| least(rows)).collect();
        let mut limit: Vec<f64> = cases.iter().filter_map(|(_, rows)| rows[0].derived.fraction_of_peak).collect();
        best.sort_by(f64::total_cmp);
        limit.sort_by(f64::total_cmp);
        let reached = best.iter().filter(|&&r| r >= 1.0).count();
        let of_limit = limit.get(limit.len() / 2).map_or("-".into(), |l| format!("{:.0} %", l * 100.0));
        text += &format!(
            "| {threads} | {kind} | {} | {reached} | {:.2} | {:.2} | {of_limit} |\n",
            best.len(),
            best[best.len() / 2],
            best[0]
        );
    }
    text
}

/// Markdown, a table for each number of threads and kind of operation: a row per case, how many times as long as the fastest kernel each
/// peer takes.
pub fn peer_tables(records: &[Record]) -> String {
    let mut text = String::new();
    for ((threads, kind), list) in &groups(records) {
        text += &format!("\n{kind}, {threads} thread{}\n\n{}", if *threads > 1 { "s" } else { "" }, table(list));
    }
    text
}

/// `matmul f32`, `attention f16`, `norm`, ...
fn kind(r: &Record) -> String {
    match r.identity.op.as_str() {
        op @ ("matmul" | "attention") => format!("{op} {}", r.identity.format),
        op => op.into(),
    }
}

fn least(rows: &[&Record]) -> f64 {
    rows.iter().filter_map(|r| r.peer.as_ref()).map(|p| p.ratio).fold(f64::INFINITY, f64::min)
}

/// In the order they were measured.
fn cases<'a>(list: &[&'a Record]) -> Vec<(&'a str, Vec<&'a Record>)> {
    let mut cases: Vec<(&str, Vec<&Record>)> = Vec::new();
    for r in list {
        match cases.iter_mut().find(|c| c.0 == r.identity.case) {
            Some(case) => case.1.push(r),
            None => cases.push((&r.identity.case, vec![r])),
        }
    }
    cases
}

fn table(list: &[&Record]) -> String {
    let name = |r: &Record| r.peer.as_ref().map_or(String::new(), |p| format!("{} {}", p.peer, p.version));
    let mut names: Vec<String> = list.iter().map(|r| name(r)).collect();
    names.sort();
    names.dedup();
    let mut text = format!(
        "| case | Tesela | of the limit | {} | best |\n|---|--:|--:|{}--:|\n",
        names.join(" | "),
        "--:|".repeat(names.len())
    );
    for (case, rows) in cases(list) {
        let ratio = |n: &String| rows.iter().find(|r| name(r) == *n).and_then(|r| r.peer.as_ref()).map(|p| p.ratio);
        let cells: Vec<String> = names.iter().map(|n| ratio(n).map_or("-".into(), |r| format!("{r:.2}"))).collect();
        let own = share(rows[0]);
        let (took, cells) = (time(rows[0].samples.median), cells.join(" | "));
        text += &format!("| {case} | {took} | {own} | {cells} | {:.2} |\n", least(&rows));
    }
    text
}
