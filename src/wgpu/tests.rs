//! What only a device can get wrong. The operations themselves are the conformance kit's.
//! Without a Vulkan driver (software counts: Debian's mesa-vulkan-drivers) these tests say so and check nothing.

use super::{adapter::open, *};
use crate::backend::OpenOptions;

fn adapters() -> Vec<wgpu::Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    if adapters.is_empty() {
        eprintln!("skipped: no adapter");
    }
    adapters
}

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
    for adapter in adapters() {
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
    let Some(adapter) = adapters().into_iter().next() else { return };
    let device = open(&adapter, "known".into(), &OpenOptions::default()).unwrap();
    let plan = |m: usize| {
        let op: Op = format!("matmul x=f32:{m}x64 w=q8_0:32x64 out=f32:{m}x32").parse().unwrap();
        device.plan(&op).unwrap().remove(0)
    };
    plan(64);
    let compiled = device.pipelines.len();
    let plans: Vec<_> = (0..100).map(|i| plan(65 + i)).collect();
    assert_eq!(device.pipelines.len(), compiled, "a known class compiles nothing");
    assert!(plans.iter().all(|p| p.name() == "wgpu-f32-q8_0-tiled8"));
}

/// Recording, not computing: what a launch costs the caller, its share of a batch's submission included. The limit is a wide one, and
/// rounds are of one batch, some of which other work of the machine does not interrupt.
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
        let best = (0..64).map(|_| {
            let start = std::time::Instant::now();
            (0..queue::BATCH).for_each(|_| launch());
            let each = start.elapsed() / queue::BATCH as u32;
            device.sync().unwrap();
            each
        });
        let best = best.min().unwrap();
        eprintln!("{}: {best:?} of host time per launch", device.info());
        assert!(best.as_micros() < 30, "{best:?}");
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
    for adapter in adapters() {
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

/// Bytes that decoding does not look at included.
#[test]
fn blocks_are_the_encoders_own() {
    let mut rng = crate::op::Rng(7);
    let values: Vec<f32> = (0..96).map(|_| (rng.unit() * 8.0 - 3.0) as f32).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    for device in devices() {
        for to in [crate::DType::Q8_1, crate::DType::Q5_1] {
            let plan = device.plan(&format!("convert x=f32:96 out={to}:96").parse().unwrap()).unwrap().remove(0);
            let mut expected = vec![0; to.bytes(96).unwrap()];
            crate::quant::encode(to, &values, &mut expected).unwrap();
            let args = [bytes.len(), expected.len()].map(|n| View::whole(device.alloc(n).unwrap()));
            device.write(&args[0], &bytes).unwrap();
            // SAFETY: the operands of the plan's operation, of its device and as long as it says.
            unsafe { plan.launch(&args, None) }.unwrap();
            let mut got = vec![0; expected.len()];
            device.read(&args[1], &mut got).unwrap();
            assert_eq!(got, expected, "{to}");
        }
    }
}

/// A driver that gets one shader wrong (here: loses one store) costs that kernel, not the result.
#[test]
fn the_self_test_rejects_a_wrong_shader() {
    let Some(adapter) = adapters().into_iter().next() else { return };
    let device = open(&adapter, "wrong".into(), &OpenOptions::default()).unwrap();
    let op: Op = "matmul x=f32:64x64 w=f32:64x64 out=f32:64x64".parse().unwrap();
    let kernel = kernels(&op, &device.abilities).unwrap().into_iter().find(|k| k.variant == "tiled8").unwrap();
    let (right, store) = (kernel.source().unwrap(), "fn store_bits_out(i: u32, bits: u32) { ");
    let wrong = right.replace(store, &format!("{store}if i == 7u {{ return; }} "));
    assert_ne!(wrong, right);
    device.pipelines.get(kernel.key(), || device.queue.compile("wrong", wrong, kernel.operands.len())).unwrap();
    let builder = crate::Runtime::builder().only_devices().device(Arc::new(device)).no_cache();
    let all = builder.build().unwrap().explain(&op).unwrap();
    let rejected = |name: &str| all.declined.iter().any(|d| d.why.contains(name) && d.why.contains("wrong result"));
    assert!(rejected("wgpu-f32-tiled8:"), "{all}");
    assert!(!rejected("wgpu-f32-tiled:"), "{all}");
    assert!(all.chosen.as_ref().is_some_and(|c| c.kernel == "wgpu-f32-tiled"), "{all}");
}

#[test]
fn scans_take_any_steps_and_keep_heads_apart() {
    use crate::op::scan_tests::{DECAYS, SCANS, STEPS, scans, steps_and_decays, what_is_spoiled_stays};
    for (op, device) in scans(&SCANS).flat_map(|op| devices().into_iter().map(move |device| (op, device))) {
        steps_and_decays(&*device, &op, &STEPS, &DECAYS);
        what_is_spoiled_stays(&*device, &op);
    }
}

/// A device whose bindings hold 2 KiB and begin at multiples of 256 bytes, whatever the driver's own alignment is.
#[cfg(feature = "conformance")]
#[test]
fn tensors_larger_than_a_binding_are_cut() {
    use crate::conformance::{Case, Verdict, check_case};
    let Some(adapter) = adapters().into_iter().next() else { return };
    let limits = wgpu::Limits {
        max_storage_buffer_binding_size: 2048,
        min_storage_buffer_offset_alignment: 256,
        ..adapter.limits()
    };
    let able = adapter::Abilities::default();
    let device = adapter::open_with(&adapter, "small".into(), &OpenOptions::default(), able, limits).unwrap();
    for (text, parts) in [
        ("elementwise a=f32:3x50x7 b=f32:50x7 out=f32:3x50x7 function=add", 3),
        ("elementwise a=f32:1000 out=f32:1000 function=exp", 4),
        ("convert x=f16:40x33@1x40 out=f32:40x33", 8),
        ("convert x=f32:1024 out=q8_0:1024", 4),
        ("matmul x=f32:5x64 w=q8_0:90x64 out=f32:5x90 bias=f32:90 residual=f32:5x90", 4),
        ("matmul x=f32:70x16 w=f32:20x16 out=f16:70x20", 4),
        ("matmul x=f32:40x16 w=f32:80x16 out=f32:40x80 act=silu up=f32:80x16", 32),
        ("matmul x=f32:2x2 w=f8e4m3:700x2 out=f32:2x700 w_scale=f32:6x1", 4),
        ("gather table=f32:100x20 index=i32:30 out=f32:30x20", 16),
        ("gather table=q4_0:90x64 index=i32:7 out=f16:7x64 scale=2", 2),
        ("matmul x=f32:2x130 w=f8e4m3:140x130 out=f32:2x140 w_scale=f32:2x2", 0), // 128 columns are too many
    ] {
        let op: Op = text.parse().unwrap();
        assert_eq!(parts::of(&op, device.queue.most_bound()).unwrap().len(), parts, "{text}");
        let outcomes = check_case(&device, &Case { op, fill: crate::op::Fill::Normal, seed: 1 });
        assert!(!outcomes.is_empty());
        for o in outcomes {
            let right = o.verdict == Verdict::Passed || parts == 0 && o.why.contains("a binding holds");
            assert!(right, "{text}: {} {}", o.kernel, o.why);
        }
    }
}

/// Operations of any small extents, zero included: few pipelines, since extents are run-time values.
#[cfg(feature = "conformance")]
mod fuzz {
    use proptest::{
        prelude::*,
        test_runner::{TestRng, TestRunner},
    };

    use super::*;
    use crate::{
        conformance::{Case, Verdict, check_case},
        op::Fill,
    };

    /// `{a}`, `{b}`, `{c}`: extents; `{a2}` and so on: multiples of them.
    const OPS: [&str; 11] = [
        "elementwise a=f32:{a}x{b} b=f32:{b} out=f32:{a}x{b}",
        "norm x=f32:{a}x{b} out=f32:{a}x{b} weight=f32:{b}",
        "softmax x=f32:{a}x{b} out=f32:{a}x{b}",
        "reduce x=f32:{a}x{b} out=i32:{a}x1 kind=arg-max",
        "matmul x=f32:{a}x{b} w=f32:{c}x{b} out=f32:{a}x{c}",
        "matmul x=f32:{a}x{b32} w=q8_0:{c}x{b32} out=f32:{a}x{c}",
        "attention q=f32:1x{a}x{c2}x32 k=f32:1x{b}x{c}x32 v=f32:1x{b}x{c}x32 out=f32:1x{a}x{c2}x32",
        "rope x=f32:{a}x{c}x{b2} positions=i32:{a}",
        "convert x=f16:{a}x{b}@1x{a} out=f32:{a}x{b}",
        "gather table=q4_0:{a}x{b32} index=i32:{c} out=f32:{c}x{b32}",
        "sample logits=f32:{a}x{b} seed=i32:2 out=i32:{a} top_p=0.9",
    ];

    fn extent() -> impl Strategy<Value = usize> {
        prop_oneof![0usize..6, 7usize..10, 31usize..34, 63usize..66, Just(100)]
    }

    fn text(which: usize, extents: [usize; 3]) -> String {
        let named = ["a", "b", "c"].into_iter().zip(extents);
        named.fold(OPS[which].to_string(), |text, (name, n)| {
            [("", 1), ("2", 2), ("32", 32)]
                .iter()
                .fold(text, |text, (times, by)| text.replace(&format!("{{{name}{times}}}"), &(n * by).to_string()))
        })
    }

    #[test]
    fn any_extents_give_what_the_reference_gives() {
        let Some(device) = devices().into_iter().next() else { return };
        let config = ProptestConfig { cases: 160, failure_persistence: None, ..ProptestConfig::default() };
        let checked = std::cell::Cell::new(0);
        let extents = [extent(), extent(), extent()];
        let done = TestRunner::new_with_rng(config, TestRng::deterministic_rng(Default::default())).run(
            &(0..OPS.len(), extents, any::<u64>()),
            |(which, extents, seed)| {
                let Ok(op) = text(which, extents).parse::<Op>() else { return Ok(()) };
                if op.validate().is_err() {
                    return Ok(()); // an extent that the operation has no meaning for
                }
                for outcome in check_case(&*device, &Case { op, fill: Fill::Normal, seed }) {
                    prop_assert_eq!(
                        outcome.verdict,
                        Verdict::Passed,
                        "{} {}: {}",
                        outcome.kernel,
                        outcome.id,
                        outcome.why
                    );
                    checked.set(checked.get() + 1);
                }
                Ok(())
            },
        );
        done.unwrap();
        assert!(checked.get() > 120, "{checked:?}");
    }
}
