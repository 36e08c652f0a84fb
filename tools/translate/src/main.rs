//! Translates every `.wgsl` file of a folder to SPIR-V, MSL and HLSL, as wgpu would for Vulkan, Metal and DirectX 12: whether a shader
//! can be run there is known without the hardware.
//!
//!     cargo run -p translate -- FOLDER

use std::{fs, io, path::PathBuf, process::ExitCode, sync::Mutex, thread};

use naga::{
    back::{hlsl, msl, spv},
    front::wgsl,
    valid::{Capabilities, ValidationFlags, Validator},
};

fn main() -> io::Result<ExitCode> {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("usage: translate FOLDER");
        return Ok(ExitCode::from(2));
    };
    let entries: io::Result<Vec<PathBuf>> = fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect();
    let mut files = entries?;
    files.retain(|f| f.extension().is_some_and(|e| e == "wgsl"));
    files.sort();
    let (count, left, failed) = (files.len(), Mutex::new(files), Mutex::new(Vec::new()));
    let next = || left.lock().ok().and_then(|mut files| files.pop());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(file) = next() {
                    let result = fs::read_to_string(&file).map_err(|e| e.to_string()).and_then(|text| translate(&text));
                    if let (Err(why), Ok(mut failed)) = (result, failed.lock()) {
                        failed.push(format!("{}: {why}", file.display()));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_default();
    failed.iter().take(20).for_each(|f| println!("{f}"));
    println!("{count} shaders, {} do not translate to SPIR-V, MSL or HLSL", failed.len());
    Ok(if count == 0 || !failed.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The first language that the shader cannot be written in, with the reason.
fn translate(text: &str) -> Result<(), String> {
    let mut options = wgsl::Options::new();
    options.capabilities = Capabilities::all();
    let module = wgsl::Frontend::new_with_options(options).parse(text).map_err(|e| e.emit_to_string(text))?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(text))?;

    let options = spv::Options { lang_version: (1, 4), ..Default::default() };
    spv::write_vec(&module, &info, &options, None).map_err(|e| format!("SPIR-V: {e}"))?;

    if text.contains("coop_mat16x16") {
        return Ok(()); // Vulkan's alone: Metal lists 8 x 8
    }
    let options = msl::Options {
        lang_version: (3, 1),
        fake_missing_bindings: true,
        zero_initialize_workgroup_memory: false,
        ..Default::default()
    };
    let (_, written) =
        msl::write_string(&module, &info, &options, &Default::default()).map_err(|e| format!("MSL: {e}"))?;
    written.entry_point_names.into_iter().try_for_each(|name| name.map(|_| ()).map_err(|e| format!("MSL: {e}")))?;

    if text.contains("coop_mat") {
        return Ok(()); // DirectX has no such matrices: the adapter never lists them there
    }
    let options =
        hlsl::Options { shader_model: hlsl::ShaderModel::V6_2, fake_missing_bindings: true, ..Default::default() };
    let pipeline = hlsl::PipelineOptions::default();
    let mut written = String::new();
    let written = hlsl::Writer::new(&mut written, &options, &pipeline).write(&module, &info, None);
    let written = written.map_err(|e| format!("HLSL: {e}"))?;
    written.entry_point_names.into_iter().try_for_each(|name| name.map(|_| ()).map_err(|e| format!("HLSL: {e}")))
}
