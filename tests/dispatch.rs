//! The dispatcher: choice by measurement, self-tests, packed weights, fallback, and what is kept on disk.

mod fake;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use fake::{Fake, Kernel};
use tesela::{
    Builder, DType, Error, Fallback, Op, Reference, Result, Runtime, Spec, Tensor,
    backend::{Backend, OpenOptions},
    dispatch::How,
    op::Matmul,
};

const QUICK: Kernel = Kernel { name: "fake-f32-quick", wrong: false, delay: Duration::ZERO, packed: None, scratch: 0 };
const SLOW: Kernel = Kernel { name: "fake-f32-slow", delay: Duration::from_micros(300), ..QUICK };
const WRONG: Kernel = Kernel { name: "fake-f32-wrong", wrong: true, ..QUICK };
const PACKED: Kernel = Kernel { name: "fake-f32-packed", packed: Some("reversed"), ..QUICK };

fn on(devices: &[&Arc<Fake>]) -> Builder {
    let builder = Runtime::builder().only_devices().no_cache();
    devices.iter().fold(builder, |b, d| b.device((*d).clone() as Arc<dyn Backend>))
}

fn matmul(m: usize, n: usize, k: usize) -> Op {
    let spec = |a, b| Spec::new(DType::F32, &[a, b]).expect("a small spec");
    Matmul::new(spec(m, k), spec(n, k), spec(m, n)).into()
}

/// `x [2, 3] times w [8, 3]`, and what it must give.
fn example(rt: &Runtime, weight: bool) -> Result<(Tensor, Tensor, Vec<f32>)> {
    let values: Vec<f32> = (0..24).map(|i| i as f32 - 7.0).collect();
    let x = rt.from_f32(&[2, 3], &[1., 2., 3., -1., 0.5, 4.])?;
    let w = match weight {
        true => rt.weight(DType::F32, &[8, 3], bytemuck::cast_slice(&values))?,
        false => rt.from_f32(&[8, 3], &values)?,
    };
    let dot = |x: [f32; 3], j: usize| (0..3).map(|p| x[p] * values[3 * j + p]).sum::<f32>();
    let expected = (0..16).map(|i| dot([[1., 2., 3.], [-1., 0.5, 4.]][i / 8], i % 8)).collect();
    Ok((x, w, expected))
}

#[test]
fn the_fastest_right_kernel_is_chosen() -> Result<()> {
    let rt = on(&[&Fake::open("fake", &[WRONG, SLOW, QUICK])]).build()?;
    let (x, w, expected) = example(&rt, false)?;
    assert_eq!(rt.matmul(&x, &w).run()?.read_f32()?, expected);
    let report = rt.report();
    assert_eq!((report.len(), report[0].kernel.as_str(), report[0].launches), (1, QUICK.name, 1));
    let all = rt.explain(&matmul(2, 8, 3))?;
    assert_eq!(all.chosen.as_ref().map(|c| (c.kernel.as_str(), c.how)), Some((QUICK.name, How::Measured)));
    assert!(all.candidates.iter().any(|c| c.kernel == SLOW.name && c.time > Some(SLOW.delay)));
    assert!(all.declined.iter().any(|d| d.why.contains(WRONG.name) && d.why.contains("wrong result")), "{all}");
    Ok(())
}

#[test]
fn a_lying_device_is_disqualified() -> Result<()> {
    let (liar, honest) = (Fake::open("liar", &[WRONG]), Fake::open("honest", &[SLOW]));
    let rt = on(&[&liar, &honest]).build()?;
    let all = rt.explain(&matmul(2, 8, 3))?;
    assert_eq!(all.chosen.map(|c| c.device).as_deref(), Some("honest"));
    assert_eq!(rt.fastest(&[matmul(2, 8, 3)])?.info().id, "honest");
    assert_eq!(rt.default_device().info().id, "honest");
    // asked to run there all the same, it refuses rather than guesses
    let device = rt.device("liar")?;
    let x = rt.from_f32_on(&device, &[1, 1], &[2.])?;
    assert!(matches!(rt.matmul(&x, &x).run(), Err(Error::Unsupported { why, .. }) if why.contains("wrong result")));
    Ok(())
}

#[test]
fn weights_are_kept_once_packed_a_chunk_at_a_time() -> Result<()> {
    let device = Fake::open("fake", &[PACKED, QUICK]);
    let rt = on(&[&device]).build()?;
    let (x, w, expected) = example(&rt, true)?;
    assert_eq!((w.packing(), w.view().is_none()), (Some("reversed"), true));
    assert_eq!(rt.matmul(&x, &w).run()?.read_f32()?, expected);
    assert_eq!(rt.report()[0].kernel, PACKED.name);
    // what needs it plain says what to do
    assert!(matches!(w.slice(0, 0..4), Err(Error::Invalid { why, .. }) if why.contains("tensor")));
    assert!(matches!(rt.matmul(&w, &w).run(), Err(Error::Invalid { .. })));
    // the same product of a plain tensor takes the kernel that reads it
    let (x, plain, _) = example(&rt, false)?;
    assert_eq!(rt.matmul(&x, &plain).run()?.read_f32()?, expected);
    assert!(rt.report().iter().any(|p| p.kernel == QUICK.name));

    // 64 MiB: the peak stays within 1.05 times the weight, the chunk of plain rows included
    let (n, k) = (4096, 4096);
    let bytes: Arc<Vec<u8>> = Arc::new(vec![0; n * k * 4]);
    let before = device.memory().used;
    let big = rt.weight_adopted(DType::F32, &[n, k], bytes.clone(), 0..bytes.len())?;
    assert_eq!(device.memory().used - before, bytes.len());
    assert!(device.memory().peak - before <= bytes.len() + bytes.len() / 20, "{:?}", device.memory());
    drop(big);
    assert_eq!(device.memory().used, before);
    Ok(())
}

#[test]
fn an_adopted_weight_takes_another_form_where_one_is_needed() -> Result<()> {
    let rt = on(&[&Fake::open("fake", &[PACKED, QUICK])]).build()?;
    let values: Vec<u8> = [1f32, 2., 3., 4.].iter().flat_map(|v| v.to_le_bytes()).collect();
    let w = rt.weight_adopted(DType::F32, &[2, 2], Arc::new(values), 0..16)?;
    assert_eq!(w.packing(), Some("reversed"));
    // as activations it must be plain, as a weight packed: the same tensor serves both
    assert_eq!(rt.matmul(&w, &w).run()?.read_f32()?, [5., 11., 11., 25.]);
    Ok(())
}

#[test]
fn falling_back_is_refused_or_reported() -> Result<()> {
    let device = Fake::open("fake", &[QUICK]);
    let reference = || Arc::new(Reference::open(&OpenOptions::default()));
    let rt = on(&[&device]).device(reference()).build()?;
    let fake = rt.device("fake")?;
    let (x, bias) = (rt.from_f32_on(&fake, &[1, 1], &[2.])?, rt.from_f32_on(&fake, &[1], &[1.])?);
    assert!(matches!(rt.matmul(&x, &x).bias(&bias).run(), Err(Error::Unsupported { .. })));
    let away = rt.to(&x, &rt.device("reference")?)?;
    assert!(matches!(rt.matmul(&x, &away).run(), Err(Error::Invalid { why, .. }) if why.contains("Fallback")));

    let rt = on(&[&device]).device(reference()).fallback(Fallback::Reported).build()?;
    let fake = rt.device("fake")?;
    let (x, bias) = (rt.from_f32_on(&fake, &[1, 1], &[2.])?, rt.from_f32_on(&fake, &[1], &[1.])?);
    // into a strided output whose other elements must survive
    let out = rt.from_f32_on(&fake, &[1, 3], &[7., 7., 7.])?;
    for _ in 0..2 {
        rt.matmul(&x, &x).bias(&bias).run_into(&out.slice(1, 1..2)?)?;
    }
    assert_eq!(out.read_f32()?, [7., 5., 7.]);
    let report = rt.report();
    let row = report.iter().find(|p| p.fell_back.is_some()).expect("a row for what fell back");
    assert_eq!((row.op, row.device.as_str(), row.launches), ("matmul", "reference", 2));
    assert!(row.fell_back.as_ref().is_some_and(|why| why.contains("bias")));
    let away = rt.to(&x, &rt.device("reference")?)?;
    assert_eq!(rt.matmul(&x, &away).run()?.read_f32()?, [4.]);
    Ok(())
}

#[test]
fn want_of_memory_is_no_verdict() -> Result<()> {
    let device = Fake::open("fake", &[SLOW, QUICK]);
    let rt = on(&[&device]).build()?;
    let (x, w, expected) = example(&rt, false)?;
    let y = rt.zeros(DType::F32, &[2, 8])?;
    device.limit(device.memory().used); // no room for a self-test
    assert!(matches!(rt.matmul(&x, &w).run_into(&y), Err(Error::OutOfMemory { .. })));
    device.limit(usize::MAX);
    rt.matmul(&x, &w).run_into(&y)?;
    assert_eq!((y.read_f32()?, rt.report()[0].kernel.as_str()), (expected, QUICK.name));
    Ok(())
}

#[test]
fn less_determinism_than_asked_for_is_declined() -> Result<()> {
    use tesela::op::Determinism;
    let rt = on(&[&Fake::open("fake", &[QUICK])]).determinism(Determinism::BatchInvariant).build()?;
    let (x, w, _) = example(&rt, false)?;
    let result = rt.matmul(&x, &w).run();
    assert!(matches!(result, Err(Error::Unsupported { why, .. }) if why.contains("promises run-to-run")));
    Ok(())
}

#[test]
fn a_new_extent_of_a_known_class_replans_in_microseconds() -> Result<()> {
    let device = Fake::open("fake", &[SLOW, QUICK]);
    let rt = on(&[&device]).build()?;
    let w = rt.from_f32(&[1, 1], &[2.])?;
    let prompt = |rows: usize| rt.matmul(&rt.zeros(DType::F32, &[rows, 1])?, &w).run();
    prompt(64)?;
    let mut best = Duration::MAX;
    for rows in 33..64 {
        let (before, start) = (device.launches(), std::time::Instant::now());
        prompt(rows)?;
        best = best.min(start.elapsed());
        assert_eq!(device.launches() - before, 1, "nothing is measured or tested again for {rows} rows");
    }
    println!("a prompt of another length: {best:.1?}, planning, uploading and running it");
    assert!(best < Duration::from_micros(100), "{best:?}");
    Ok(())
}

/// An empty directory that goes away in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("tesela-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary directory");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn chosen(rt: &Runtime) -> Result<(String, How)> {
    let chosen = rt.explain(&matmul(2, 8, 3))?.chosen;
    Ok(chosen.map(|c| (c.kernel, c.how)).expect("a device that multiplies"))
}

#[test]
fn measurements_are_remembered_by_device_driver_and_version() -> Result<()> {
    let dir = Scratch::new("cache");
    let build = |id: &str| on(&[&Fake::open(id, &[SLOW, QUICK])]).cache_dir(&dir.0).build();
    assert_eq!(chosen(&build("fake")?)?, (QUICK.name.into(), How::Measured));
    assert_eq!(chosen(&build("fake")?)?, (QUICK.name.into(), How::Remembered));
    assert_eq!(chosen(&build("other")?)?.1, How::Measured);
    let file = dir.0.join("measured.tsv");
    let text = fs::read_to_string(&file).expect("the measurements");
    assert!(text.contains(concat!("fake\t1\t", env!("CARGO_PKG_VERSION"), "\tmatmul x=")), "{text}");
    assert_eq!(text.lines().filter(|l| l.starts_with("fake\t")).count(), 2);
    // times from another driver are not believed, and go when new ones are written
    fs::write(&file, text.replace("fake\t1\t", "fake\t0\t")).expect("a writable file");
    assert_eq!(chosen(&build("fake")?)?.1, How::Measured);
    let text = fs::read_to_string(&file).expect("the measurements");
    assert!(!text.contains("fake\t0\t") && text.contains("other\t1\t"), "{text}");
    assert_eq!(fs::read_dir(&dir.0).expect("the directory").count(), 1, "no temporary file stays");
    Ok(())
}

#[test]
fn a_bad_cache_is_a_warning() -> Result<()> {
    let dir = Scratch::new("corrupt");
    let file = dir.0.join("measured.tsv");
    let line = "fake\t1\t0.1.0\tmatmul\tkernel\t";
    for bad in [
        "".to_string(),
        "something else\n".into(),
        format!("tesela measurements 1\n{line}soon\n"),
        format!("tesela measurements 1\n{line}0\n"),
        "tesela measurements 1\nfake\t12\n".into(),
        "\u{0}\u{1}".into(),
    ] {
        fs::write(&file, &bad).expect("a writable file");
        let rt = on(&[&Fake::open("fake", &[SLOW, QUICK])]).cache_dir(&dir.0).build()?;
        assert_eq!(rt.warnings().len(), 1, "{bad:?}");
        assert_eq!(chosen(&rt)?, (QUICK.name.into(), How::Measured));
        // and it was replaced by a good one
        let rt = on(&[&Fake::open("fake", &[SLOW, QUICK])]).cache_dir(&dir.0).build()?;
        assert_eq!((rt.warnings(), chosen(&rt)?.1), (Vec::new(), How::Remembered));
    }
    fs::write(&file, [0xff, 0xfe]).expect("a writable file");
    assert_eq!(on(&[&Fake::open("fake", &[QUICK])]).cache_dir(&dir.0).build()?.warnings().len(), 1);

    // a directory that cannot be one
    let rt = on(&[&Fake::open("fake", &[SLOW, QUICK])]).cache_dir(file.join("below a file")).build()?;
    assert_eq!(chosen(&rt)?, (QUICK.name.into(), How::Measured));
    assert_eq!(chosen(&rt)?.0, QUICK.name);
    assert!(rt.warnings().iter().any(|w| w.contains("cannot be kept")), "{:?}", rt.warnings());
    Ok(())
}

#[test]
fn fewer_allowed_devices_are_fewer() -> Result<()> {
    let (a, b) = (Fake::open("a", &[QUICK]), Fake::open("b", &[QUICK]));
    let rt = on(&[&a, &b]).allow(&["b"]).build()?;
    assert_eq!(rt.devices().iter().map(|d| d.info().id.as_str()).collect::<Vec<_>>(), ["b"]);
    Ok(())
}
