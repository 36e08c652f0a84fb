//! The command as a user meets it: what it prints, what it writes, how it ends.
#![cfg(feature = "cli")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn tesela(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tesela")).args(args).stdin(Stdio::null()).output().expect("the command starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&path).expect("a folder");
    path
}

#[test]
fn devices_are_listed() {
    let all = json(&tesela(&["devices", "--json"]));
    let devices = all["devices"].as_array().expect("devices");
    assert_eq!(devices.last().expect("one")["backend"], "reference");
    let text = tesela(&["devices"]);
    assert!(code(&text) == 0 && String::from_utf8_lossy(&text.stdout).contains("reference"));
}

#[test]
fn verification_writes_its_files() {
    let dir = folder("verify");
    let [certificate, junit, markdown] = ["c.json", "j.xml", "m.md"].map(|f| dir.join(f).display().to_string());
    let out = tesela(&[
        "verify",
        "--device",
        "reference",
        "--filter",
        "matmul q8_0",
        "--certificate",
        &certificate,
        "--junit",
        &junit,
        "--markdown",
        &markdown,
    ]);
    assert_eq!(code(&out), 0, "{out:?}");
    let read = |path: &str| std::fs::read_to_string(path).expect("written");
    let certificate: Value = serde_json::from_str(&read(&certificate)).expect("JSON");
    assert_eq!((&certificate["schema"], &certificate["passed"]), (&"tesela-certificate/1".into(), &true.into()));
    assert!(certificate["cases"].as_array().expect("cases").iter().all(|c| c["stats"]["elements"].is_u64()));
    assert!(read(&junit).contains("<testcase ") && read(&markdown).contains("| matmul | f32 q8_0 -> f32 |"));
    let one = tesela(&[
        "verify",
        "--device",
        "reference",
        "--filter",
        "matmul x=f32:2x32 w=q4_0:3x32 out=f32:2x3 #normal.5",
        "--json",
    ]);
    assert_eq!(json(&one)["cases"].as_array().expect("cases").len(), 1);
}

#[test]
fn results_come_in_every_format() {
    let dir = folder("bench");
    for (format, file) in [
        ("jsonl", "r.jsonl"),
        ("bencher", "r.json"),
        ("github-smaller", "s.json"),
        ("github-bigger", "b.json"),
        ("csv", "r.csv"),
        ("markdown", "r.md"),
        ("html", "r.html"),
    ] {
        let path = dir.join(file).display().to_string();
        let out = tesela(&[
            "bench",
            "--device",
            "reference",
            "--filter",
            "matmul x=f32:4x64 w=q8_0:32x64 out=f32:4x32",
            "--budget",
            "5",
            "--format",
            format,
            "--out",
            &path,
        ]);
        assert_eq!(code(&out), 0, "{out:?}");
        let text = std::fs::read_to_string(&path).expect("written");
        match format {
            "jsonl" => {
                let record: tesela::bench::Record =
                    serde_json::from_str(text.lines().next().expect("a line")).expect("a record");
                assert_eq!(record.identity.schema, tesela::bench::SCHEMA);
                assert!(record.correctness.checked && record.correctness.why.is_empty() && !record.placement.fell_back);
                assert!(record.samples.min > 0 && record.samples.min <= record.samples.median);
                assert!(record.repeat.contains(&record.identity.case));
            }
            "bencher" => {
                let value: Value = serde_json::from_str(&text).expect("JSON");
                let (_, measures) = value.as_object().expect("an object").iter().next().expect("a case");
                assert!(measures["latency"]["lower_value"].is_u64() && measures["throughput"]["value"].is_f64());
            }
            "github-smaller" | "github-bigger" => {
                let value: Value = serde_json::from_str(&text).expect("JSON");
                assert!(value[0]["name"].is_string() && value[0]["value"].is_number() && value[0]["unit"].is_string());
            }
            "csv" => assert_eq!(text.lines().count(), 2),
            "html" => assert!(text.contains("matmul x=f32:4x64")),
            _ => assert!(text.contains("| matmul x=f32:4x64")),
        }
    }
}

#[test]
fn explanations_name_a_kernel() {
    let words = ["explain", "matmul", "x=f32:8x64", "w=q8_0:32x64", "out=f32:8x32"];
    let out = tesela(&words);
    assert!(code(&out) == 0 && String::from_utf8_lossy(&out.stdout).contains("chosen"), "{out:?}");
    assert!(json(&tesela(&[&words[..], &["--json"]].concat()))["chosen"]["kernel"].is_string());
}

#[test]
fn wrong_usage_is_told_and_ends_with_2() {
    for args in [
        &["nonsense"][..],
        &["verify", "--device", "abacus"],
        &["verify", "--filter", "no-such-word"],
        &["verify", "--filter", "matmul x=f32:2x3 w=f32:2x4 out=f32:2x2"],
        &["bench", "--suite", "none"],
        &["bench", "--filter", "no-such-word"],
        &["explain", "matmul", "x=f32:2x3"],
        &["explain"],
    ] {
        let out = tesela(args);
        assert_eq!(code(&out), 2, "{args:?}: {out:?}");
        assert!(String::from_utf8_lossy(&out.stderr).starts_with("error: "), "{args:?}: {out:?}");
    }
}

#[test]
fn what_cannot_be_written_ends_with_1() {
    let out =
        tesela(&["verify", "--device", "reference", "--filter", "matmul q8_0", "--junit", "/no/such/folder/j.xml"]);
    assert!(code(&out) == 1 && String::from_utf8_lossy(&out.stderr).contains("/no/such/folder"), "{out:?}");
}

#[test]
#[cfg(unix)]
fn a_reader_that_leaves_is_no_panic() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tesela"))
        .args(["verify", "--device", "reference", "--level", "quant", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("ends");
    assert_eq!(code(&out), 0, "{out:?}");
    assert!(!String::from_utf8_lossy(&out.stderr).contains("panicked"), "{out:?}");
}
