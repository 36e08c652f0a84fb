//! The committed measurements beside peers: whole, right, and told truly in the README.
#![cfg(feature = "bench")]

use std::{collections::BTreeMap, fs, path::Path};

use tesela::bench::{Record, SCHEMA, peer_summary};

fn records() -> Vec<(String, Vec<Record>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/record");
    let mut files: Vec<_> = fs::read_dir(&folder).expect("benches/record").map(|f| f.expect("a file").path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "jsonl"));
    files.sort();
    assert!(!files.is_empty(), "no record in {}", folder.display());
    let read = |f: &std::path::PathBuf| {
        let text = fs::read_to_string(f).expect("a text");
        let parse = |l: &str| serde_json::from_str(l).unwrap_or_else(|e| panic!("{}: {e}", f.display()));
        (f.display().to_string(), text.lines().map(parse).collect())
    };
    files.iter().map(read).collect()
}

#[test]
fn records_are_whole_and_right() {
    for (file, records) in records() {
        for r in &records {
            let case = &r.identity.case;
            assert_eq!(r.identity.schema, SCHEMA, "{file}: {case}");
            assert!(r.correctness.checked && r.correctness.why.is_empty(), "{file}: {case}: {}", r.correctness.why);
            assert!(!r.placement.fell_back && r.samples.median > 0, "{file}: {case}");
            let Some(peer) = &r.peer else { continue };
            let ratio = peer.median as f64 / r.samples.median as f64;
            assert!((peer.ratio - ratio).abs() < 1e-6, "{file}: {case}: {} is not {ratio}", peer.ratio);
        }
    }
}

/// On the processor a product of more rows takes no less time than one of fewer, up to 512, within a tenth: by the fastest kernel of each, as it
/// was committed.
#[test]
fn time_rises_with_rows() {
    for (file, records) in records() {
        let mut products: BTreeMap<String, BTreeMap<usize, u64>> = BTreeMap::new();
        let ours = |r: &&Record| r.peer.is_none() && r.device.backend == "cpu" && r.identity.op == "matmul";
        for r in records.iter().filter(ours).filter(|r| !r.code.dirty) {
            let (of, how) = (&r.identity, &r.conditions);
            let rest = (&of.dtypes, &of.shape["w"], &of.epilogue, of.case.contains("numerics=fast"), how.threads);
            let times = products.entry(format!("{rest:?}")).or_default();
            let time = times.entry(of.shape["x"][0]).or_insert(u64::MAX);
            *time = r.samples.median.min(*time);
        }
        for (product, times) in products {
            for (few, before) in times.range(..=512) {
                for (many, after) in times.range(few..=&512) {
                    let rises = *after as f64 >= 0.9 * *before as f64;
                    assert!(rises, "{file}: {product}: {many} rows take {after} ns, {few} take {before}");
                }
            }
        }
    }
}

#[test]
fn the_readme_tells_every_record() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("README.md");
    for (file, records) in records() {
        let summary = peer_summary(&records);
        assert!(readme.contains(&summary), "README.md lacks the summary of {file}:\n{summary}");
    }
}
