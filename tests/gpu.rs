//! `tools/gpu` where there is no GPU: what it says, how it exits, and, with programs that only pretend, that every step runs within its time.
#![cfg(unix)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, PoisonError},
};

/// One test at a time: a program that one writes while the other starts a process is busy for that process, and cannot be run.
static ALONE: Mutex<()> = Mutex::new(());

/// A folder with the script and, where given, programs in place of those that `tools/gpu build` makes.
fn folder(name: &str, programs: Option<[&str; 2]>) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("tools")).unwrap();
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools");
    fs::copy(tools.join("gpu"), folder.join("tools/gpu")).unwrap();
    if let Some(bodies) = programs {
        let built = folder.join("target/gpu");
        fs::create_dir_all(&built).unwrap();
        fs::write(built.join("commit"), "0\n").unwrap();
        for (program, body) in [("tesela", bodies[0]), ("tests", bodies[1]), ("stack", bodies[1])] {
            let file = built.join(program);
            fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    folder
}

fn run(folder: &Path, arguments: &[&str]) -> (i32, String, Output) {
    let output = Command::new(folder.join("tools/gpu")).args(arguments).env_remove("OUT").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), text, output)
}

/// Lists a CUDA device; what is asked of it `THEN`.
const PRESENT: &str = r#"if [ "$1" = devices ]; then echo 'cuda  some GPU'; exit 0; fi
while [ $# -gt 0 ]; do [ "$1" = --out ] && echo '{}' >"$2"; shift; done
THEN"#;

#[test]
fn what_is_missing_is_said() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (code, why, _) = run(&folder("usage", None), &[]);
    assert!(code == 2 && why.contains("tools/gpu build"), "{code}: {why}");
    let (code, why, _) = run(&folder("unbuilt", None), &["run"]);
    assert!(code == 2 && why.contains("no binaries"), "{code}: {why}");
    let absent =
        folder("absent", Some(["echo 'cpu  some CPU'; echo 'no cuda: no NVIDIA driver: libcuda.so.1'", "exit 1"]));
    let (code, why, _) = run(&absent, &["run"]);
    assert!(code == 3 && why == "no cuda: no NVIDIA driver: libcuda.so.1\n", "{code}: {why}");
    assert!(!absent.join("target/gpu/out/summary.tsv").exists(), "nothing else was run");
}

#[test]
fn every_step_runs_and_one_that_fails_is_told() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let right = folder("right", Some([&PRESENT.replace("THEN", "exit 0"), "exit 0"]));
    let (code, why, listed) = run(&right, &["list"]);
    assert_eq!(code, 0, "{why}");
    let listed = String::from_utf8(listed.stdout).unwrap();
    let steps: Vec<(&str, u64)> = listed
        .lines()
        .map(|l| l.split_whitespace())
        .map(|mut w| (w.next().unwrap(), w.next().unwrap().parse().unwrap()))
        .collect();
    type Steps<'a> = Vec<&'a (&'a str, u64)>;
    let (beside, alone): (Steps, Steps) = steps.iter().partition(|s| s.0.ends_with('+'));
    let longest = beside.iter().map(|s| s.1).max().unwrap();
    assert!(longest + alone.iter().map(|s| s.1).sum::<u64>() < 480, "under eight minutes");

    let (code, why, _) = run(&right, &["run"]);
    let out = right.join("target/gpu/out");
    let summary = fs::read_to_string(out.join("summary.tsv")).unwrap();
    assert_eq!(code, 0, "{why}{summary}");
    let mut ran: Vec<&str> = summary.lines().skip(1).map(|l| l.split('\t').next().unwrap()).collect();
    assert_eq!(ran[beside.len()..], alone.iter().map(|s| s.0).collect::<Vec<_>>());
    ran.sort();
    let mut all: Vec<&str> = steps.iter().map(|s| s.0.trim_end_matches('+')).collect();
    all.sort();
    assert_eq!(ran, all);
    assert!(summary.lines().skip(1).all(|l| l.contains("passed") || l.contains("absent")), "{summary}");
    assert_eq!(fs::read_to_string(out.join("bench.jsonl")).unwrap().lines().count(), 4, "a record of each suite");

    let wrong = folder("wrong", Some([&PRESENT.replace("THEN", "exit 1"), "exit 0"]));
    let (code, _, _) = run(&wrong, &["run", wrong.join("elsewhere").to_str().unwrap()]);
    let summary = fs::read_to_string(wrong.join("elsewhere/summary.tsv")).unwrap();
    assert!(code == 1 && summary.contains("hardware\tpassed") && summary.contains("verify-cuda\tfailed"), "{summary}");
}
