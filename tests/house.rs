//! House rules as tests: what the compiler does not check for us.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Modules in the order in which they may import: each sees those before it (and itself), never those after.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["dtype"],
    &["layout"],
    &["quant"],
    &["op"],
    &["backend"],
    &["host"],
    &["reference", "cpu", "wgpu", "cuda"],
    &["dispatch"],
    &["gguf"],
    &["tensor", "runtime"],
    &["conformance"],
    &["bench"],
    &["bin"],
];

/// Modules of one layer that may see each other.
const TOGETHER: &[&[&str]] = &[&["tensor", "runtime"]];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

/// The text before the file's unit tests, comments removed.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    let end = ["#[cfg(test)]", "#[cfg(all(test"].iter().filter_map(|mark| text.find(mark)).min();
    let code = &text[..end.unwrap_or(text.len())];
    code.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The unit tests of a module may stand in a file of their own.
fn is_test_file(path: &Path) -> bool {
    path.file_stem().is_some_and(|s| s == "tests" || s == "testing" || s.to_string_lossy().ends_with("_tests"))
        || path.parent().is_some_and(|p| p.ends_with("tests"))
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|l| l.contains(&module))
}

#[test]
fn imports_run_one_way() {
    let mut wrong = Vec::new();
    for path in files("src", &["rs"]).into_iter().filter(|p| !is_test_file(p)) {
        let name = relative(&path);
        let module = name.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default().to_string();
        if module == "lib" {
            continue; // the only file that sees every module
        }
        let own = layer(&module).unwrap_or_else(|| panic!("{name}: give module `{module}` a place in LAYERS"));
        let text = code(&path);
        for (at, _) in text.match_indices("crate::") {
            let rest = &text[at + "crate::".len()..];
            // `crate::{a::X, b::Y}` or `crate::a::X`: the first word of each entry
            let entries: Vec<&str> = match rest.strip_prefix('{') {
                Some(list) => top_level(list),
                None => vec![rest],
            };
            for entry in entries {
                let word: String = entry.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let Some(other) = layer(&word) else { continue }; // a re-export or a macro
                let together = TOGETHER.iter().any(|t| t.contains(&word.as_str()) && t.contains(&module.as_str()));
                if other > own || (other == own && word != module && !together) {
                    wrong.push(format!("{name} imports {word}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the direction:\n{}", wrong.join("\n"));
}

/// The entries of a brace list, split at its top level.
fn top_level(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut entries) = (0usize, 0, Vec::new());
    for (i, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                entries.push(&list[start..i]);
                return entries;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                entries.push(&list[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    entries
}

#[test]
fn only_lib_names_backends_by_feature() {
    for path in files("src", &["rs"]) {
        let name = relative(&path);
        let text = code(&path);
        for feature in ["cpu", "wgpu", "cuda"] {
            let gate = format!("feature = \"{feature}\"");
            assert!(name == "src/lib.rs" || !text.contains(&gate), "{name} is gated by {gate}: only lib.rs may be");
        }
    }
}

#[test]
fn files_stay_short() {
    let mut long = Vec::new();
    for folder in ["src", "tests", "benches", "examples", "kernels", "shaders", "tools"] {
        for path in files(folder, &["rs", "cu", "cuh", "wgsl", "py"]) {
            let lines = fs::read_to_string(&path).expect("a source file").lines().count();
            if lines > 600 {
                long.push(format!("{} has {lines} lines", relative(&path)));
            }
        }
    }
    assert!(long.is_empty(), "split these:\n{}", long.join("\n"));
}

#[test]
fn nothing_reachable_panics_on_purpose() {
    // The conformance report's `assert` is for tests; a case's descriptor is a constant that a test builds.
    let allowed = |name: &str, line: &str| {
        line.contains("expect(\"a case's") || (name.starts_with("src/conformance/") && line.contains("panic!("))
    };
    let mut wrong = Vec::new();
    for path in files("src", &["rs"]).into_iter().filter(|p| !is_test_file(p)) {
        let name = relative(&path);
        for line in code(&path).lines() {
            let words = [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!("];
            if words.iter().any(|w| line.contains(w)) && !allowed(&name, line) {
                wrong.push(format!("{name}: {}", line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "return an error instead:\n{}", wrong.join("\n"));
}

#[test]
fn one_word_is_one_file_name() {
    for op in tesela::Op::NAMES {
        for folder in ["src/op", "src/cpu"] {
            let (file, module) =
                (root().join(format!("{folder}/{op}.rs")), root().join(format!("{folder}/{op}/mod.rs")));
            assert!(file.exists() || module.exists(), "{folder} has no file {op}");
        }
    }
    let banned = ["util", "utils", "helper", "helpers", "manager", "misc"];
    let folders = ["src", "shaders", "kernels", "tests", "examples"];
    for path in folders.iter().flat_map(|f| files(f, &["rs", "wgsl", "cu", "cuh"])) {
        let stem = path.file_stem().map(|s| s.to_string_lossy().to_lowercase()).unwrap_or_default();
        assert!(!banned.contains(&stem.as_str()), "{} says nothing: name what it holds", relative(&path));
    }
}

#[test]
fn unsafe_is_explained() {
    // Clippy denies an unsafe block without `// SAFETY:`; this keeps anyone from switching that off.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    assert!(manifest.contains("undocumented_unsafe_blocks = \"deny\""));
    for path in files("src", &["rs"]) {
        assert!(!code(&path).contains("undocumented_unsafe_blocks"), "{} switches the rule off", relative(&path));
    }
}
