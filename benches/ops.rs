//! Criterion over the quick suite, through the public API, with the ids of the records. `tesela bench` looks closer: all kernels in
//! turns, rotated weights, checked results.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tesela::{
    Op, Result, Runtime, Tensor,
    backend::Kind,
    bench::{Suite, ops},
    dispatch::Device,
    op::{Array, Fill, Rng, Role},
};

/// The operation's operands on a device, inputs filled.
fn operands(rt: &Runtime, device: &Device, op: &Op) -> Result<Vec<Tensor>> {
    let mut rng = Rng(0);
    let one = |o: &tesela::op::Operand| {
        let (dtype, shape, mut bytes) = (o.spec.dtype(), o.spec.shape(), vec![0; o.spec.span()]);
        if o.role != Role::Out {
            let data = op.fill(o, Fill::Normal, &mut rng);
            Array { spec: o.spec, data, magnitude: Vec::new() }.encode(None, &mut bytes)?;
        }
        match o.role {
            Role::Weight => rt.weight_on(device, dtype, shape, &bytes),
            _ => rt.tensor_on(device, dtype, shape, &bytes),
        }
    };
    op.operands().iter().map(one).collect()
}

fn quick(criterion: &mut Criterion) {
    let rt = Runtime::builder().no_cache().build().expect("the reference is on every machine");
    let devices = rt.devices().iter().filter(|d| !matches!(d.info().kind, Kind::Reference | Kind::SoftwareGpu));
    for device in devices {
        let mut group = criterion.benchmark_group(device.info().id.clone());
        group.sample_size(10);
        for op in ops(Suite::Quick).iter().filter(|op| device.backend().plan(op).is_ok()) {
            let tensors = operands(&rt, device, op).expect("room for the operands");
            let refs: Vec<&Tensor> = tensors.iter().collect();
            group.bench_function(op.to_string(), |bencher| {
                bencher.iter(|| rt.run(op, &refs).and_then(|()| device.sync()).expect("it was planned"));
            });
        }
        group.finish();
    }
}

/// What waking the other thread costs: a product of some microseconds by one and by two threads, launched one after the other, and after
/// the threads were idle for long enough to sleep.
fn wake(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wake");
    group.sample_size(50);
    for threads in [1, 2] {
        let rt = Runtime::builder().threads(threads).allow(&["cpu"]).no_cache().build().expect("there is a processor");
        let Some(device) = rt.devices().iter().find(|d| d.info().kind == Kind::Cpu) else { return };
        let op: Op = "matmul x=f32:8x256 w=f32:512x256 out=f32:8x512".parse().expect("an operation");
        let tensors = operands(&rt, device, &op).expect("room for the operands");
        let refs: Vec<&Tensor> = tensors.iter().collect();
        let run = || rt.run(&op, &refs).expect("it was planned");
        for idle in [0, 200].map(Duration::from_micros) {
            group.bench_function(format!("{threads} threads, {} us idle", idle.as_micros()), |bencher| {
                bencher.iter_custom(|times| {
                    let one = |_| {
                        std::thread::sleep(idle);
                        let start = Instant::now();
                        run();
                        start.elapsed()
                    };
                    (0..times).map(one).sum()
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, quick, wake);
criterion_main!(benches);
