//! Embeds `shaders/*.wgsl` and `kernels/*.ptx` as tables of name and text. Needs no compiler, no GPU and no network.

use std::{env, error::Error, fmt::Write, fs, path::Path, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    identify();
    embed("shaders", "wgsl")?;
    embed("kernels", "ptx")
}

/// Commit and compiler, for benchmark records. Outside a checkout the commit is unknown.
fn identify() {
    let ask = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let set = |name: &str, value: Option<String>| println!("cargo::rustc-env={name}={}", value.unwrap_or_default());
    set("TESELA_COMMIT", ask("git", &["rev-parse", "HEAD"]));
    set("TESELA_DIRTY", ask("git", &["status", "--porcelain"]).map(|changes| (!changes.is_empty()).to_string()));
    set("TESELA_RUSTC", ask(&env::var("RUSTC").unwrap_or("rustc".into()), &["--version"]));
    // Of the last build that compiled something: a commit alone rebuilds nothing.
    println!("cargo::rerun-if-changed=src");
}

/// Writes `$OUT_DIR/FOLDER.rs`: an array expression of `(name, text)`, sorted by name.
fn embed(folder: &str, extension: &str) -> Result<(), Box<dyn Error>> {
    let root = env::var("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&root).join(folder);
    println!("cargo::rerun-if-changed={folder}");
    let mut files = Vec::new();
    for entry in fs::read_dir(&root).into_iter().flatten() {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    files.sort();
    let mut table = String::from("&[\n");
    for path in files {
        println!("cargo::rerun-if-changed={}", path.display());
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        writeln!(table, "    ({name:?}, include_str!({path:?})),")?;
    }
    table.push_str("]\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join(format!("{folder}.rs")), table)?;
    Ok(())
}
