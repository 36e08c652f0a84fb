//! What is said of NVIDIA's driver when there is none, or one that does not serve, and that nobody loads it who does not look for
//! devices. A library that only pretends stands in for the driver, in processes of their own.
#![cfg(all(target_os = "linux", feature = "cuda"))]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

#[cfg(feature = "cpu")]
use tesela::Cpu as Processor;
#[cfg(not(feature = "cpu"))]
use tesela::Reference as Processor;
use tesela::{Runtime, backend::OpenOptions, discover};

/// The driver's library: leaves a mark when it is loaded, and answers what the environment says.
const FAKE: &str = r#"
use std::{env, ffi::c_int, fs};
extern "C" fn mark() {
    if let Ok(file) = env::var("FAKE_MARK") {
        let _ = fs::write(file, "");
    }
}
#[used]
#[unsafe(link_section = ".init_array")]
static MARK: extern "C" fn() = mark;
fn asked(name: &str) -> c_int {
    env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(0)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_: u32) -> c_int {
    asked("FAKE_INIT")
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(to: *mut c_int) -> c_int {
    unsafe { *to = asked("FAKE_VERSION") };
    0
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(to: *mut c_int) -> c_int {
    unsafe { *to = 0 };
    0
}
"#;

/// A folder with a library of that text as the driver.
fn driver(name: &str, text: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driver-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("fake.rs"), text).unwrap();
    let rustc = env::var("RUSTC").unwrap_or("rustc".into());
    let arguments =
        ["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "cuda", "fake.rs", "-o", "libcuda.so.1"];
    assert!(Command::new(rustc).args(arguments).current_dir(&folder).status().unwrap().success());
    folder
}

/// What a process of this test prints that finds this driver, and whether it loaded it.
fn process(folder: &Path, role: &str, answers: &[(&str, &str)]) -> (String, bool) {
    let mark = folder.join("loaded");
    let _ = fs::remove_file(&mark);
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "a_process_of_its_own", "--nocapture"]).env("TESELA_TEST_ROLE", role);
    command.env("LD_LIBRARY_PATH", folder).env("FAKE_MARK", &mark).envs(answers.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8_lossy(&output.stdout).into_owned(), mark.exists())
}

/// Not a test of its own: what `process` runs.
#[test]
fn a_process_of_its_own() {
    match env::var("TESELA_TEST_ROLE").as_deref() {
        Ok("discover") => {
            let found = discover(&OpenOptions::default());
            found.absent.iter().for_each(|a| println!("no {}: {}", a.backend, a.why));
        }
        Ok("compute") => {
            let processor = Processor::open(&OpenOptions::default());
            #[cfg(feature = "cpu")]
            let processor = processor.unwrap();
            let rt = Runtime::builder().device(Arc::new(processor)).only_devices().no_cache().build().unwrap();
            let x = rt.from_f32(&[1, 2], &[1.0, 2.0]).unwrap();
            assert_eq!(rt.matmul(&x, &x).run().unwrap().read_f32().unwrap(), [5.0]);
        }
        _ => {}
    }
}

#[test]
fn reasons() {
    let folder = driver("reasons", FAKE);
    for (code, version, why) in [
        ("34", "12040", "stub"),
        ("100", "12040", "CUDA_VISIBLE_DEVICES"),
        ("304", "12040", "/dev/nvidia"),
        ("803", "12040", "different versions"),
        ("999", "12040", "nvidia-modprobe"),
        ("0", "11040", "the driver is for CUDA 11.4"),
        ("0", "12040", "no device"),
    ] {
        let (said, loaded) = process(&folder, "discover", &[("FAKE_INIT", code), ("FAKE_VERSION", version)]);
        let line = said.lines().find(|l| l.contains("no cuda:")).unwrap_or_else(|| panic!("{said}"));
        assert!(loaded && line.contains(why), "cuInit {code}, version {version}: {line}");
    }
    let (said, _) = process(&driver("foreign", "#[unsafe(no_mangle)] pub extern \"C\" fn other() {}"), "discover", &[]);
    assert!(said.contains("libcuda is no CUDA driver"), "{said}");
}

#[test]
fn who_computes_on_the_cpu_loads_no_driver() {
    let folder = driver("unasked", FAKE);
    assert!(process(&folder, "discover", &[]).1, "who looks for devices does");
    assert!(!process(&folder, "compute", &[]).1);
}
