//! The typed API: tensors, views, calls, policies.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tesela::{
    Builder, DType, Error, Fallback, Op, Reference, Runtime, Spec,
    backend::OpenOptions,
    op::{Activation, Matmul},
};

fn reference() -> Builder {
    Runtime::builder().device(Arc::new(Reference::open(&OpenOptions::default()))).only_devices().no_cache()
}

#[test]
fn discovery_ends_with_the_reference_and_names_what_is_missing() {
    let found = tesela::discover(&OpenOptions::default());
    assert_eq!(found.devices.last().map(|d| d.info().backend.as_str()), Some("reference"));
    for (backend, built) in
        [("cpu", cfg!(feature = "cpu")), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))]
    {
        let absent = found.absent.iter().find(|a| a.backend == backend);
        if !built {
            assert!(absent.is_some_and(|a| a.why.contains("built without feature")), "{backend}");
        }
    }
}

#[test]
fn views_follow_strides_and_blocks() -> tesela::Result<()> {
    let rt = reference().build()?;
    let x = rt.from_f32(&[2, 3, 4], &(0..24).map(|i| i as f32).collect::<Vec<_>>())?;
    let y = x.slice(1, 1..3)?.slice(2, 2..4)?;
    assert_eq!(y.read_f32()?, [6., 7., 10., 11., 18., 19., 22., 23.]);
    assert_eq!(y.permute(&[2, 0, 1])?.read::<f32>()?, [6., 10., 18., 22., 7., 11., 19., 23.]);
    assert_eq!(x.reshape(&[6, 4])?.slice(0, 5..6)?.read_f32()?, [20., 21., 22., 23.]);
    assert_eq!(rt.from_f32(&[2, 1], &[1., 2.])?.broadcast(&[2, 2, 2])?.read_f32()?, [1., 1., 2., 2., 1., 1., 2., 2.]);
    assert!(matches!(y.reshape(&[8]), Err(Error::Invalid { .. })));
    assert!(matches!(x.slice(3, 0..1), Err(Error::Invalid { .. })));
    assert!(matches!(x.slice(0, 1..3), Err(Error::Invalid { .. })));
    assert!(matches!(x.permute(&[0, 0, 1]), Err(Error::Invalid { .. })));
    assert!(matches!(x.read::<u16>(), Err(Error::Invalid { .. })));
    assert!(matches!(x.reshape(&[5, 5]), Err(Error::Invalid { .. })));
    assert!(x.slice(0, 2..2)?.read_f32()?.is_empty());

    let q = rt.zeros(DType::Q8_0, &[4, 64])?;
    assert_eq!(q.slice(0, 1..3)?.shape(), [2, 64]);
    assert_eq!(q.slice(1, 32..64)?.read::<u8>()?.len(), 4 * 34);
    for cut in [q.slice(1, 16..48), q.slice(1, 0..16), q.transpose(0, 1), q.reshape(&[16, 16])] {
        assert!(matches!(cut, Err(Error::Invalid { .. })), "{cut:?}");
    }
    Ok(())
}

/// Polls until it is ready.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

#[test]
fn what_is_read_later_is_of_now() -> tesela::Result<()> {
    for device in tesela::discover(&OpenOptions::default()).devices {
        let rt = Runtime::builder().device(device).only_devices().no_cache().build()?;
        let x = rt.from_f32(&[2, 3], &[1., 2., 3., 4., 5., 6.])?;
        let (whole, part) = (x.read_later::<f32>()?, x.transpose(0, 1)?.slice(0, 1..3)?.read_later::<f32>()?);
        x.write(bytemuck::cast_slice(&[0f32; 6]))?;
        assert_eq!(wait(whole)?, [1., 2., 3., 4., 5., 6.]);
        assert_eq!(wait(part)?, [2., 5., 3., 6.]);
        assert!(matches!(x.read_later::<u16>(), Err(Error::Invalid { .. })));
        assert!(wait(x.slice(0, 1..1)?.read_later::<f32>()?)?.is_empty());
    }
    Ok(())
}

#[test]
fn calls_allocate_or_write_into() -> tesela::Result<()> {
    let rt = reference().build()?;
    let x = rt.from_f32(&[2, 2], &[1., 2., 3., 4.])?;
    let w = rt.weight(DType::F32, &[2, 2], bytemuck::cast_slice(&[1f32, 0., 0., -1.]))?;
    let bias = rt.from_f32(&[2], &[10., 0.])?;
    let y = rt.matmul(&x, &w).bias(&bias).act(Activation::Relu).run()?;
    assert_eq!(y.read_f32()?, [11., 0., 13., 0.]);
    // a column slice of a wider tensor as output, and a residual that is the output itself
    let wide = rt.zeros(DType::F32, &[2, 4])?;
    rt.matmul(&x, &w).run_into(&wide.slice(1, 1..3)?)?;
    assert_eq!(wide.read_f32()?, [0., 1., -2., 0., 0., 3., -4., 0.]);
    rt.matmul(&x, &w).residual(&y).run_into(&y)?;
    assert_eq!(y.read_f32()?, [12., -2., 16., -4.]);
    assert_eq!(rt.report().iter().map(|p| p.launches).sum::<u64>(), 3);
    // wrong shapes say so
    let error = rt.matmul(&x, &rt.zeros(DType::F32, &[2, 3])?).run();
    assert!(matches!(error, Err(Error::Invalid { .. })), "{error:?}");
    // a tensor whose spec is not the operation's
    let op: Op = Matmul::new(x.spec(), x.spec(), x.spec()).into();
    assert!(rt.run(&op, &[&x, &x, &wide]).is_err());
    assert!(rt.run(&op, &[&x, &x]).is_err());
    Ok(())
}

#[test]
fn tensors_of_another_runtime_are_refused() -> tesela::Result<()> {
    let (a, b) = (reference().build()?, reference().build()?);
    let (x, y) = (a.from_f32(&[1, 1], &[2.])?, b.from_f32(&[1, 1], &[3.])?);
    assert!(matches!(a.matmul(&x, &y).run(), Err(Error::Invalid { .. })));
    Ok(())
}

#[test]
fn adopted_weights_serve_every_operation() -> tesela::Result<()> {
    let rt = reference().build()?;
    let bytes: Vec<u8> = [0f32, 1., 2., 3.].iter().flat_map(|v| v.to_le_bytes()).collect();
    let w = rt.weight_adopted(DType::F32, &[1, 3], Arc::new(bytes.clone()), 4..16)?;
    assert_eq!(w.read_f32()?, [1., 2., 3.]);
    let x = rt.from_f32(&[1, 3], &[1., 1., 1.])?;
    assert_eq!(rt.matmul(&x, &w).run()?.read_f32()?, [6.]);
    assert!(rt.weight_adopted(DType::F32, &[1, 3], Arc::new(bytes.clone()), 8..20).is_err());
    assert!(rt.weight_adopted(DType::F32, &[1, 4], Arc::new(bytes), 4..16).is_err());
    assert!(w.write(&[0; 12]).is_err());
    Ok(())
}

#[test]
fn a_weight_takes_its_own_size_on_every_device() -> tesela::Result<()> {
    let rt = Runtime::builder().no_cache().build()?;
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4_K] {
        let (n, k) = (2048, 1024);
        let bytes: Arc<Vec<u8>> = Arc::new(vec![0; Spec::new(dtype, &[n, k])?.bytes()]);
        for device in rt.devices() {
            let before = device.memory().used;
            let weight = rt.weight_adopted_on(device, dtype, &[n, k], bytes.clone(), 0..bytes.len())?;
            let grown = device.memory().used - before;
            assert!(grown <= bytes.len() + bytes.len() / 20, "{dtype} on {device}: {grown} of {}", bytes.len());
            assert_eq!(weight.read::<u8>()?, *bytes);
        }
    }
    Ok(())
}

#[test]
fn names_that_match_nothing_are_refused() {
    for builder in [reference().allow(&["abacus"]), Runtime::builder().only_devices()] {
        assert!(matches!(builder.build(), Err(Error::Invalid { .. })));
    }
    let rt = reference().build().expect("the reference is on every machine");
    assert!(rt.device("reference").is_ok());
    assert!(matches!(rt.device("abacus"), Err(Error::Invalid { why, .. }) if why.contains("reference")));
}

#[test]
fn memory_limit_is_an_error_and_no_end() -> tesela::Result<()> {
    let limited = Reference::open(&{
        let mut options = OpenOptions::default();
        options.memory_limit = 1 << 16;
        options
    });
    let rt = Runtime::builder().device(Arc::new(limited)).only_devices().no_cache().build()?;
    let held = rt.zeros(DType::U8, &[40_000])?;
    let error = rt.zeros(DType::U8, &[40_000]);
    assert!(matches!(error, Err(Error::OutOfMemory { bytes: 40_000, .. })), "{error:?}");
    drop(held);
    // pooled memory nobody uses makes room
    drop(rt.empty_on(&rt.devices()[0].clone(), DType::U8, &[40_000])?);
    drop(rt.empty_on(&rt.devices()[0].clone(), DType::U8, &[20_000])?);
    assert!(rt.empty_on(&rt.devices()[0].clone(), DType::U8, &[60_000]).is_ok());
    assert!(rt.memory()[0].1.peak <= 1 << 16);
    Ok(())
}

#[test]
fn several_threads_share_a_runtime_and_tensors() -> tesela::Result<()> {
    fn shared<T: Send + Sync + Clone + 'static>(value: T) -> T {
        value
    }
    for rt in [reference().build()?, Runtime::builder().no_cache().fallback(Fallback::Reported).build()?] {
        share(&shared(rt))?;
    }
    Ok(())
}

fn share(rt: &Runtime) -> tesela::Result<()> {
    let (x, w) = (rt.from_f32(&[1, 2], &[1., 2.])?, rt.from_f32(&[2, 2], &[1., 1., 2., 2.])?);
    std::thread::scope(|scope| {
        let work = |i: usize| {
            let (rt, x, w) = (rt.clone(), x.clone(), w.clone());
            move || -> tesela::Result<()> {
                for step in 1..20 {
                    let y = rt.matmul(&x, &w).scale((i * step) as f32).run()?;
                    drop(y.clone()); // while others use it
                    assert_eq!(y.read_f32()?, [3. * (i * step) as f32, 6. * (i * step) as f32]);
                }
                Ok(())
            }
        };
        let threads: Vec<_> = (1..5).map(|i| scope.spawn(work(i))).collect();
        threads.into_iter().try_for_each(|t| t.join().expect("a thread that does not panic"))
    })
}

#[test]
fn explain_says_what_runs_where() -> tesela::Result<()> {
    let rt = reference().fallback(Fallback::Reported).build()?;
    let spec = |s: &[usize]| Spec::new(DType::F32, s);
    let op: Op = Matmul::new(spec(&[2, 3])?, spec(&[4, 3])?, spec(&[2, 4])?).into();
    let all = rt.explain(&op)?;
    assert_eq!(all.chosen.as_ref().map(|c| c.kernel.as_str()), Some("reference-f64-matmul"));
    assert!(all.candidates[0].time.is_some(), "small enough to be measured");
    let text = all.to_string();
    assert!(text.contains("reference-f64-matmul") && text.contains("chosen"), "{text}");
    assert!(rt.explain(&Matmul::new(spec(&[2, 3])?, spec(&[4, 4])?, spec(&[2, 4])?).into()).is_err());
    Ok(())
}
