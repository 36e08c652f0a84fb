//! Embeds `shaders/*.wgsl` and `kernels/*.ptx` as tables of name and text. Needs no compiler, no GPU and no network.

use std::{env, error::Error, fmt::Write, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    embed("shaders", "wgsl")?;
    embed("kernels", "ptx")
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
