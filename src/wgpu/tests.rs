//! What only a device can get wrong. The operations themselves are the conformance kit's.
//! Without a Vulkan driver (software counts: Debian's mesa-vulkan-drivers) these tests say so and check nothing.

use super::{adapter::open, *};
use crate::backend::OpenOptions;

fn devices() -> Vec<Arc<dyn Backend>> {
    let (devices, absent) = open_all(&OpenOptions::default());
    absent.iter().for_each(|a| eprintln!("skipped: {}", a.why));
    devices
}

#[cfg(feature = "conformance")]
#[test]
fn every_device_conforms() {
    use crate::conformance::{Options, check_with};
    // A few cases of each operation, or what the environment names: tests/conformance.rs runs them all.
    let named = Options::from_env();
    let options = Options { quick: named.filter.is_none(), ..named };
    for device in devices() {
        let report = check_with(&*device, &options, &mut |_, _| {});
        eprintln!("{report}");
        report.assert();
    }
}

/// The shaders that the suite's operations ask for, with and without what a device may offer. The variable `TESELA_SHADERS` names a
/// folder to write them to, for `tools/shaders`.
#[cfg(feature = "conformance")]
#[test]
fn every_shader_assembles() {
    let folder = std::env::var_os("TESELA_SHADERS").map(std::path::PathBuf::from);
    let mut seen = std::collections::HashSet::new();
    let cases = crate::conformance::cases(&Default::default()).unwrap();
    for able in adapter::Abilities::ALL {
        for kernel in cases.iter().flat_map(|case| kernels(&case.op, &able).unwrap_or_default()) {
            if !seen.insert(kernel.key()) {
                continue;
            }
            let text = kernel.source().unwrap();
            assert!(text.contains("fn main("), "{}", kernel.variant);
            assert!(!text.lines().any(|l| l.trim_start().starts_with('#')), "{}: a directive is left", kernel.variant);
            if let Some(folder) = &folder {
                std::fs::write(folder.join(format!("{}-{}.wgsl", kernel.variant, seen.len())), text).unwrap();
            }
        }
    }
    println!("{} shaders", seen.len());
    assert!(seen.len() > 500, "{}", seen.len());
}

#[test]
fn bytes_at_any_offset_survive_their_neighbours() {
    for device in devices() {
        let whole = View::whole(device.alloc(64).unwrap());
        let mut expected = vec![0u8; 64];
        device.read(&whole, &mut expected).unwrap();
        assert_eq!(expected, [0; 64], "memory comes zeroed");
        for (offset, len) in [(0, 64), (1, 1), (3, 2), (5, 8), (8, 3), (61, 3), (7, 0)] {
            let bytes: Vec<u8> = (0..len).map(|i| (offset * 7 + i + 1) as u8).collect();
            let view = whole.slice(offset, len).unwrap();
            device.write(&view, &bytes).unwrap();
            expected[offset..offset + len].copy_from_slice(&bytes);
            let mut got = vec![0; len];
            device.read(&view, &mut got).unwrap();
            assert_eq!(got, bytes);
        }
        let mut got = vec![0; 64];
        device.read(&whole, &mut got).unwrap();
        assert_eq!(got, expected);
    }
}

#[test]
fn memory_runs_out_and_the_device_stays() {
    for device in open_all(&OpenOptions { memory_limit: 1 << 20, ..OpenOptions::default() }).0 {
        let kept = device.alloc(1 << 19).unwrap();
        for bytes in [1 << 20, usize::MAX] {
            assert!(matches!(device.alloc(bytes), Err(Error::OutOfMemory { .. })), "{bytes}");
        }
        assert_eq!(device.memory().used, 1 << 19);
        drop(kept);
        assert_eq!((device.memory().used, device.memory().peak), (0, 1 << 19));
        device.alloc(1 << 20).unwrap();
        device.sync().unwrap();
    }
    // Without a limit of ours, the driver's: either answer is fine, but the device must survive it.
    for device in devices() {
        let held: Vec<_> = (0..4).map(|_| device.alloc(device.info().max_buffer & !63)).collect();
        assert!(
            held.iter().flatten().count() + held.iter().filter(|h| matches!(h, Err(Error::OutOfMemory { .. }))).count()
                == 4
        );
        drop(held);
        device.write(&View::whole(device.alloc(4).unwrap()), &[1; 4]).unwrap();
        device.sync().unwrap();
    }
}

#[test]
fn a_lost_device_says_so() {
    for adapter in pollster::block_on(
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle())
            .enumerate_adapters(wgpu::Backends::all()),
    ) {
        let device = open(&adapter, "lost".into(), &OpenOptions::default()).unwrap();
        let view = View::whole(device.alloc(4).unwrap());
        device.queue.device.destroy();
        let _ = device.sync(); // the loss is noticed here or at the next call
        for failed in
            [device.alloc(4).map(|_| ()), device.write(&view, &[0; 4]), device.read(&view, &mut [0; 4]), device.sync()]
        {
            let Err(Error::Device { message, .. }) = failed else { panic!("{failed:?}") };
            assert!(message.contains("lost"), "{message}");
        }
    }
}

#[test]
fn a_pipeline_is_built_once_for_all_extents() {
    let Some(device) = devices().into_iter().next() else { return };
    let plan = |m: usize| {
        let op: Op = format!("matmul x=f32:{m}x64 w=q8_0:32x64 out=f32:{m}x32").parse().unwrap();
        device.plan(&op).unwrap().remove(0)
    };
    plan(64);
    let start = std::time::Instant::now();
    let plans: Vec<_> = (0..100).map(|i| plan(65 + i)).collect();
    let each = start.elapsed() / 100;
    assert!(each.as_micros() < 2000, "{each:?} for a known class");
    assert!(plans.iter().all(|p| p.name() == "wgpu-f32-q8_0-tiled8"));
}

/// Recording, not computing: what a launch costs the caller, its share of a batch's submission included. The limit is a wide one, for
/// machines with other work.
#[test]
fn a_launch_costs_the_host_little() {
    for device in devices() {
        let op: Op = "elementwise a=f32:64 b=f32:64 out=f32:64".parse().unwrap();
        let plan = device.plan(&op).unwrap().remove(0);
        let args: Vec<View> = (0..3).map(|_| View::whole(device.alloc(256).unwrap())).collect();
        // SAFETY: the operands of the plan's operation, of its device, apart from each other and long enough.
        let launch = || unsafe { plan.launch(&args, None) }.unwrap();
        (0..256).for_each(|_| launch());
        device.sync().unwrap();
        let best = (0..8).map(|_| {
            let start = std::time::Instant::now();
            (0..512).for_each(|_| launch());
            let each = start.elapsed() / 512;
            device.sync().unwrap();
            each
        });
        let best = best.min().unwrap();
        eprintln!("{}: {best:?} of host time per launch", device.info());
        assert!(best.as_micros() < 60, "{best:?}");
    }
}

/// What is read later holds what was there when it was asked for, and other work goes on meanwhile.
#[test]
fn reading_later_does_not_wait() {
    for device in devices() {
        let whole = View::whole(device.alloc(64).unwrap());
        device.write(&whole, &[7; 64]).unwrap();
        let (all, part) = (device.read_later(&whole).unwrap(), device.read_later(&whole.slice(5, 9).unwrap()).unwrap());
        device.write(&whole, &[8; 64]).unwrap();
        assert_eq!(pollster::block_on(part).unwrap(), [7; 9]);
        assert_eq!(pollster::block_on(all).unwrap(), [7; 64]);
        assert!(pollster::block_on(device.read_later(&whole.slice(0, 0).unwrap()).unwrap()).unwrap().is_empty());
    }
}

/// Four threads plan the same operations, on two openings of one adapter: every pipeline is compiled once for each.
#[test]
fn pipelines_are_compiled_side_by_side_and_once() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    for adapter in pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all())) {
        let opened: Vec<Wgpu> =
            (0..2).map(|_| open(&adapter, "twice".into(), &OpenOptions::default()).unwrap()).collect();
        let ops: Vec<Op> =
            ["a=f32:64 b=f32:64 out=f32:64", "a=f16:64 b=f32:64 out=f32:64", "a=f32:64 b=f32:64 out=f16:64"]
                .map(|o| format!("elementwise {o}").parse().unwrap())
                .into();
        std::thread::scope(|scope| {
            for device in opened.iter().chain(&opened) {
                scope.spawn(|| ops.iter().for_each(|op| assert_eq!(device.plan(op).unwrap().len(), 1)));
            }
        });
        for device in &opened {
            assert_eq!(device.pipelines.len(), ops.len());
            device.sync().unwrap();
        }
    }
}

#[test]
fn what_a_driver_compiled_is_kept_in_a_folder() {
    let folder = std::env::temp_dir().join(format!("tesela-shaders-{}", std::process::id()));
    let options = OpenOptions { cache_folder: Some(folder.clone()), ..OpenOptions::default() };
    for round in 0..3 {
        let devices = open_all(&options).0;
        let none = devices.is_empty();
        for device in devices {
            let op: Op = "elementwise a=f32:64 b=f32:64 out=f32:64".parse().unwrap();
            device.plan(&op).unwrap();
        }
        let files: Vec<_> = std::fs::read_dir(&folder).into_iter().flatten().map(|f| f.unwrap().path()).collect();
        assert!(none || !files.is_empty(), "round {round}: nothing was kept");
        for file in &files {
            assert!(file.extension().is_none(), "{} was left behind", file.display());
            if round == 1 {
                std::fs::write(file, b"not what any driver wrote").unwrap();
            }
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
}
