//! The report as files: a certificate (JSON), a support matrix (Markdown), JUnit (XML).

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use super::{Outcome, Report, Verdict};

/// What the certificate says beside the outcomes.
#[derive(Serialize)]
struct Certificate<'a> {
    schema: &'static str,
    suite_version: &'static str,
    backend: &'a str,
    device: &'a str,
    device_id: &'a str,
    driver: &'a str,
    passed: bool,
    counts: BTreeMap<&'static str, usize>,
    seconds: f64,
    cases: &'a [Outcome],
}

impl Report {
    /// The certificate: suite version, device, driver, and per case the verdict and the error statistics.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&Certificate {
            schema: "tesela-certificate/1",
            suite_version: env!("CARGO_PKG_VERSION"),
            backend: &self.device.backend,
            device: &self.device.name,
            device_id: &self.device.id,
            driver: &self.device.driver,
            passed: self.passed(),
            counts: Verdict::ALL.iter().map(|v| (v.name(), self.with(*v).count())).collect(),
            seconds: self.elapsed.as_secs_f64(),
            cases: &self.outcomes,
        })
    }

    /// What runs, by operation and dtypes: how many cases passed, were declined (and why) and failed.
    pub fn to_markdown(&self) -> String {
        let mut rows: BTreeMap<(&str, &str), [Vec<&Outcome>; 3]> = BTreeMap::new();
        for o in self.outcomes.iter().filter(|o| o.op != "contract") {
            rows.entry((o.op, &o.dtypes)).or_default()[o.verdict as usize].push(o);
        }
        let mut text = format!("# {}\n\n{} (driver: {})\n\n", self.device, self.device.id, self.device.driver);
        text += "| operation | dtypes | runs | declined | failed | kernels, or why not |\n|---|---|--:|--:|--:|---|\n";
        for ((op, dtypes), [passed, declined, failed]) in &rows {
            let mut notes: Vec<&str> = match (failed.first(), passed.is_empty()) {
                (Some(first), _) => vec![&first.why],
                (None, true) => declined.iter().map(|o| o.why.as_str()).take(1).collect(),
                (None, false) => passed.iter().map(|o| o.kernel.as_str()).collect(),
            };
            notes.sort_unstable();
            notes.dedup();
            let (p, d, f) = (passed.len(), declined.len(), failed.len());
            let notes = notes.join(", ").replace('|', "\\|");
            let _ = writeln!(text, "| {op} | {dtypes} | {p} | {d} | {f} | {notes} |");
        }
        text += "\n| contract | |\n|---|---|\n";
        for o in self.outcomes.iter().filter(|o| o.op == "contract") {
            let _ = writeln!(text, "| {} | {} {} |", o.id.trim_start_matches("contract: "), o.verdict, o.why);
        }
        text
    }

    /// The report as continuous-integration servers read it.
    pub fn to_junit(&self) -> String {
        let count = |v| self.with(v).count();
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"tesela conformance: {}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{:.3}\">\n",
            escape(&self.device.to_string()),
            self.outcomes.len(),
            count(Verdict::Failed),
            count(Verdict::Declined),
            self.elapsed.as_secs_f64(),
        );
        for o in &self.outcomes {
            let class = format!("{}.{}.{}", self.device.backend, o.op, o.kernel);
            let _ = write!(xml, "  <testcase classname=\"{}\" name=\"{}\"", escape(&class), escape(&o.id));
            let _ = match o.verdict {
                Verdict::Passed => writeln!(xml, "/>"),
                Verdict::Declined => writeln!(xml, "><skipped message=\"{}\"/></testcase>", escape(&o.why)),
                Verdict::Failed => writeln!(xml, "><failure message=\"{}\"/></testcase>", escape(&o.why)),
            };
        }
        xml + "</testsuite>\n"
    }
}

/// For XML attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() => out += " ",
            c => out.push(c),
        }
    }
    out
}
