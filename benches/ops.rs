//! Criterion over the quick suite, through the public API, with the ids of the records; what waking threads costs; what fusions save.
//! `tesela bench` looks closer: all kernels in turns, rotated weights, checked results.

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

/// Operations, and others that do the same one after the other, the outputs of one being inputs of the next.
const FUSIONS: &[(&str, &[&str], &[&str])] = &[
    (
        "residual and norm",
        &["norm x=f32:512x4096 out=f32:512x4096 weight=f32:4096 residual=f32:512x4096 sum=f32:512x4096"],
        &[
            "elementwise a=f32:512x4096 out=f32:512x4096 b=f32:512x4096 function=add",
            "norm x=f32:512x4096 out=f32:512x4096 weight=f32:4096",
        ],
    ),
    (
        "norm and quantization",
        &["norm x=f32:512x4096 out=q8_0:512x4096 weight=f32:4096"],
        &["norm x=f32:512x4096 out=f32:512x4096 weight=f32:4096", "convert x=f32:512x4096 out=q8_0:512x4096"],
    ),
    (
        "rope and KV append",
        &["rope x=f32:512x8x128 positions=i32:512 cache=f16:4096x8x128 slots=i32:512"],
        &["rope x=f32:512x8x128 positions=i32:512", "kv_append x=f32:512x8x128 slots=i32:512 cache=f16:4096x8x128"],
    ),
    (
        "gated pair of one row",
        &["matmul x=f32:1x2048 w=bf16:8192x2048 out=f32:1x8192 up=bf16:8192x2048 act=silu"],
        &[
            "matmul x=f32:1x2048 w=bf16:8192x2048 out=f32:1x8192",
            "matmul x=f32:1x2048 w=bf16:8192x2048 out=f32:1x8192",
            "elementwise a=f32:1x8192 out=f32:1x8192 b=f32:1x8192 function=silu-mul",
        ],
    ),
    (
        "gated pair of 512 rows",
        &["matmul x=f32:512x1024 w=bf16:2048x1024 out=f32:512x2048 up=bf16:2048x1024 act=silu"],
        &[
            "matmul x=f32:512x1024 w=bf16:2048x1024 out=f32:512x2048",
            "matmul x=f32:512x1024 w=bf16:2048x1024 out=f32:512x2048",
            "elementwise a=f32:512x2048 out=f32:512x2048 b=f32:512x2048 function=silu-mul",
        ],
    ),
];

/// Operations and their operands; what one writes is what a later one of that shape and dtype reads.
fn chained(rt: &Runtime, device: &Device, ops: &[Op]) -> Result<Vec<(Op, Vec<Tensor>)>> {
    let mut written: Vec<Tensor> = Vec::new();
    let one = |&op: &Op| -> Result<(Op, Vec<Tensor>)> {
        let mut tensors = operands(rt, device, &op)?;
        for (o, tensor) in op.operands().iter().zip(&mut tensors) {
            let same = |t: &Tensor| t.dtype() == o.spec.dtype() && t.shape() == o.spec.shape();
            if let Some(i) = written.iter().position(same).filter(|_| o.role == Role::In) {
                *tensor = written.remove(i);
            }
        }
        let writes = op.operands().into_iter().zip(&tensors).filter(|(o, _)| matches!(o.role, Role::Out | Role::InOut));
        written.extend(writes.map(|(_, t)| t.clone()));
        Ok((op, tensors))
    };
    ops.iter().map(one).collect()
}

/// What one pass saves over several.
fn fusions(criterion: &mut Criterion) {
    let rt = Runtime::builder().no_cache().build().expect("the reference is on every machine");
    let devices = rt.devices().iter().filter(|d| !matches!(d.info().kind, Kind::Reference | Kind::SoftwareGpu));
    for device in devices {
        let mut group = criterion.benchmark_group(format!("{} fusions", device.info().id));
        group.sample_size(20);
        for (name, fused, apart) in FUSIONS {
            let ops = [fused, apart].map(|texts| texts.iter().map(|t| t.parse()).collect::<Result<Vec<Op>>>());
            let ops = ops.map(|ops| ops.expect("operations"));
            if let Some(Err(e)) = ops.iter().flatten().map(|op| device.backend().plan(op)).find(|p| p.is_err()) {
                println!("{name}: left out: {e}");
                continue;
            }
            for (how, ops) in ["one pass", "apart"].into_iter().zip(&ops) {
                let steps = chained(&rt, device, ops).expect("room for the operands");
                let run = || steps.iter().try_for_each(|(op, t)| rt.run(op, &t.iter().collect::<Vec<_>>()));
                group.bench_function(format!("{name}, {how}"), |bencher| {
                    bencher.iter(|| run().and_then(|()| device.sync()).expect("it was planned"));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, quick, wake, fusions);
criterion_main!(benches);
