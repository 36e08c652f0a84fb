//! One self-contained page: devices, bars, roofline, support. No network, no library.

use serde_json::json;

use super::Record;
use crate::conformance::{Report, Verdict};

/// The page of these records, with the support matrix of the reports, where there are some.
pub fn page(records: &[Record], reports: &[Report]) -> String {
    let support = reports.iter().map(|r| {
        let rows = r.outcomes.iter().filter(|o| o.op != "contract").fold(
            std::collections::BTreeMap::<(&str, &str), ([usize; 3], &str)>::new(),
            |mut rows, o| {
                let row = rows.entry((o.op, &o.dtypes)).or_default();
                row.0[o.verdict as usize] += 1;
                if o.verdict != Verdict::Passed && row.1.is_empty() {
                    row.1 = &o.why;
                }
                rows
            },
        );
        let rows = rows.iter().map(|((op, dtypes), (n, why))| json!({"op": op, "dtypes": dtypes, "n": n, "why": why}));
        let count = |v| r.with(v).count();
        json!({
            "device": r.device.id, "name": r.device.name, "backend": r.device.backend,
            "passed": count(Verdict::Passed), "declined": count(Verdict::Declined), "failed": count(Verdict::Failed),
            "rows": rows.collect::<Vec<_>>(),
        })
    });
    let data =
        json!({"records": records, "support": support.collect::<Vec<_>>(), "version": env!("CARGO_PKG_VERSION")});
    // Inside a script element only `<` could end it.
    let data = data.to_string().replace('<', "\\u003c");
    include_str!("page.html").replace("/*DATA*/null", &data)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_needs_nothing_else() {
        let page = super::page(&[], &[]);
        assert!(page.starts_with("<!doctype html>") && !page.contains("/*DATA*/"));
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
        }
    }
}
