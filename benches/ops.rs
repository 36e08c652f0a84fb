//! Criterion over the quick suite, through the public API, with the ids of the records. `tesela bench` looks closer: all kernels in
//! turns, rotated weights, checked results.

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

criterion_group!(benches, quick);
criterion_main!(benches);
