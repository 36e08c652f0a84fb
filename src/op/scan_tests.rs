//! State-space scans on time steps and decays of any size, and how far what is not finite reaches.

use std::sync::Arc;

use super::{Array, Arrays, Fill, Op, Rng, Role};
use crate::{Backend, View, backend::Plan, dispatch::Launch};

/// Two heads of a group, two groups, two sequences: few tokens, and several chunks.
pub(crate) const SCANS: [&str; 3] = [
    "ssm_scan x=f32:2x3x4x5 dt=f32:2x3x4 a=f32:4 b=f32:2x3x2x8 c=f32:2x3x2x8 out=f32:2x3x4x5 d=f32:4 dt_bias=f32:4 \
     state=f32:2x4x5x8",
    "ssm_scan x=f32:2x150x4x5 dt=f32:2x150x4 a=f32:4 b=f32:2x150x2x8 c=f32:2x150x2x8 out=f32:2x150x4x5 d=f32:4 \
     dt_bias=f32:4 state=f32:2x4x5x8",
    "selective_scan x=f32:2x20x4 dt=f32:2x20x4 a=f32:4x8 b=f32:2x20x8 c=f32:2x20x8 out=f32:2x20x4 d=f32:4 dt_bias=f32:4 \
     state=f32:2x4x8",
];

/// Steps from nothing to more than any decay survives.
pub(crate) const STEPS: [f64; 8] = [0.0, 1e-40, 1e-12, 1e-3, 1.0, 60.0, 3e4, 1e30];
/// Decays from 1 to 0, and growth that f32 holds.
pub(crate) const DECAYS: [f64; 8] = [-0.0, -1e-40, -1e-12, -1e-3, -1.0, -500.0, -1e30, 0.02];

/// The operations, with softplus and without.
pub(crate) fn scans(texts: &[&str]) -> impl Iterator<Item = Op> {
    let both = |text: &&str| [text.to_string(), format!("{text} softplus=true")];
    texts.iter().flat_map(both).map(|text| text.parse().expect("an operation"))
}

/// Ordinary operands, and outputs of zeros.
fn filled(op: &Op) -> Arrays {
    let (mut rng, mut arrays) = (Rng(11), Arrays::default());
    for o in &op.operands() {
        let mut array = Array::zeros(o.spec);
        if o.role != Role::Out {
            array.data = op.fill(o, Fill::Normal, &mut rng);
        }
        arrays.push(o.name, array);
    }
    arrays
}

/// `out` and `state` as each of the device's kernels computes them.
fn run(device: &dyn Backend, op: &Op, arrays: &Arrays) -> Vec<(&'static str, Array)> {
    device.plan(op).expect("kernels").into_iter().flat_map(|plan| run_plan(device, op, arrays, plan)).collect()
}

fn run_plan(device: &dyn Backend, op: &Op, arrays: &Arrays, plan: Arc<dyn Plan>) -> [(&'static str, Array); 2] {
    let launch = Launch::new(op, plan, device.token()).expect("a launch");
    let operands = op.operands();
    let place = |o: &super::Operand| {
        let mut bytes = vec![0; o.spec.span()];
        arrays.of(o.name).encode(None, &mut bytes).expect("encodes");
        let view = View::whole(device.alloc(bytes.len()).expect("memory"));
        device.write(&view, &bytes).expect("writes");
        view
    };
    let args: Vec<View> = operands.iter().map(place).collect();
    let scratch = Some(launch.plan().scratch()).filter(|&n| n > 0);
    let scratch = scratch.map(|n| View::whole(device.alloc(n).expect("memory")));
    launch.run(&args, scratch.as_ref()).expect("runs");
    ["out", "state"].map(|name| {
        let (o, view) = operands.iter().zip(&args).find(|(o, _)| o.name == name).expect("an operand");
        let mut bytes = vec![0; view.len()];
        device.read(view, &mut bytes).expect("reads");
        (name, Array::decode(o.spec, &bytes).expect("decodes"))
    })
}

/// The reference's results.
fn reference(op: &Op, mut arrays: Arrays) -> Arrays {
    op.reference(&mut arrays).expect("computes");
    arrays
}

/// Changes an operand.
fn with(mut arrays: Arrays, name: &'static str, change: impl FnMut((usize, &mut f64))) -> Arrays {
    let mut array = arrays.of(name).clone();
    array.data.iter_mut().enumerate().for_each(change);
    arrays.set(name, array.data);
    arrays
}

/// Every step with every decay, all steps alike and among small ones: within the operation's bound, and within a thousandth of the sum of what
/// is added up, where the bound's room for sums of logarithms is boundless.
pub(crate) fn steps_and_decays(device: &dyn Backend, op: &Op, steps: &[f64], decays: &[f64]) {
    let softplus = op.to_string().contains("softplus");
    let plain = with(filled(op), "dt_bias", |(_, v)| *v = 0.0);
    for mixed in [false, true] {
        for (&step, &decay) in steps.iter().flat_map(|s| decays.iter().map(move |d| (s, d))) {
            if decay > 0.0 && step > 1.0 {
                continue; // grows beyond f32
            }
            let sized = with(plain.clone(), "a", |(_, a)| *a = decay as f32 as f64);
            let sized = with(sized, "dt", |(i, dt)| {
                let step = if mixed && i % 12 < 8 { 0.01 } else { step };
                *dt = (if softplus && step < 30.0 { step.exp_m1().max(1e-30).ln() } else { step }) as f32 as f64;
            });
            let want = reference(op, sized.clone());
            let mut sums = sized.clone();
            for name in ["x", "b", "c", "d", "state"] {
                sums = with(sums, name, |(_, v)| *v = v.abs());
            }
            let sums = reference(op, sums);
            for (name, got) in run(device, op, &sized) {
                let at = format!("{} {op} dt {step} a {decay} mixed {mixed}", device.info().driver);
                assert_eq!(op.accept(name, &want, &got), Ok(()), "{at}");
                for ((want, got), sum) in want.of(name).data.iter().zip(&got.data).zip(&sums.of(name).data) {
                    assert!((want - got).abs() <= 1e-3 * sum + 1e-34, "{at}: {name} {got}, expected {want}");
                }
            }
        }
    }
}

/// The sequence that an element belongs to, and the head (channel; of `b` and `c` the group): none where it is all of them.
fn owner(op: &Op, name: &str, i: usize) -> (Option<usize>, Option<usize>) {
    let operands = op.operands();
    let shape = operands.iter().find(|o| o.name == name).expect("an operand").spec.shape().to_vec();
    let along = |axis: usize| i / shape[axis + 1..].iter().product::<usize>() % shape[axis];
    match name {
        "a" | "d" | "dt_bias" => (None, Some(along(0))),
        "state" => (Some(along(0)), Some(along(1))),
        "b" | "c" if shape.len() == 3 => (Some(along(0)), None),
        _ => (Some(along(0)), Some(along(2))),
    }
}

/// What is not finite, and growth beyond f32, stays in its head (its channel) and its sequence; of `b` and `c` in their group.
pub(crate) fn what_is_spoiled_stays(device: &dyn Backend, op: &Op) {
    let clean = filled(op);
    let whole = run(device, op, &clean);
    for name in ["x", "dt", "a", "b", "c", "d", "dt_bias", "state"] {
        let mine =
            |(sequence, head): (Option<usize>, Option<usize>)| sequence != Some(0) && head.is_none_or(|h| h == 1);
        let first = (0..).find(|&i| mine(owner(op, name, i))).expect("an element");
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 3e38, -3e38] {
            let odd = with(clean.clone(), name, |(i, v)| {
                if i == first {
                    *v = value as f32 as f64;
                }
            });
            for ((part, got), (_, whole)) in run(device, op, &odd).into_iter().zip(&whole) {
                for (i, (got, clean)) in got.data.iter().zip(&whole.data).enumerate() {
                    let (sequence, head) = owner(op, part, i);
                    let (of, own) = owner(op, name, first);
                    let heads = if matches!(name, "b" | "c") { 2 } else { 1 };
                    let reached = of.is_none_or(|of| Some(of) == sequence)
                        && own.is_none_or(|own| Some(own) == head.map(|h| h / heads));
                    let same = got.to_bits() == clean.to_bits();
                    assert!(reached || same, "{} {op}: {value} in {name} changes {part}[{i}]", device.info().driver);
                }
            }
        }
    }
}

#[test]
fn the_reference() {
    let device = crate::Reference::open(&Default::default());
    for op in scans(&SCANS) {
        steps_and_decays(&device, &op, &STEPS[4..6], &DECAYS[4..]);
        what_is_spoiled_stays(&device, &op);
    }
}
