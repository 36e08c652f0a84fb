//! Running a kernel on made-up operands: to see whether it is right, and how long it takes.

use std::time::Duration;

use super::{Device, Launch, weight};
use crate::{
    backend::{Kind, View},
    error::{Error, Result},
    op::{Array, Arrays, Fill, Op, Operand, Rng, Role},
};

/// A weight the caller lends to a measurement, in the form named first.
pub(crate) type Lent = Option<(Option<&'static str>, View)>;

/// Times each kernel on the operation. Rounds are interleaved, so that a machine that speeds up or slows down meanwhile
/// does so for all of them; the median counts. Kernels that fail are `None`.
pub(crate) fn times(device: &Device, launches: &[Launch], lent: &[Lent]) -> Result<Vec<Option<Duration>>> {
    let Some(first) = launches.first() else { return Ok(Vec::new()) };
    let plain = operands(device, first.op(), lent)?;
    let mut staged: Vec<(Vec<View>, Option<View>, u32)> = Vec::new();
    let mut samples: Vec<Option<Vec<Duration>>> = Vec::new();
    for launch in launches {
        let args = forms(device, launch, &plain, lent)?;
        let scratch = launch.plan().scratch();
        let scratch = if scratch > 0 { Some(device.pooled(scratch)?) } else { None };
        // The first run warms caches and compiles; the second says how many fit a sample.
        let once = |n: u32| run(device, launch, &args, scratch.as_ref(), n);
        let single = once(1).and_then(|_| once(1)).ok();
        let repeat = single.map_or(0, |t| (SAMPLE.as_nanos() / t.as_nanos().max(1)).clamp(1, 64) as u32);
        samples.push(single.map(|t| if t > LONG { vec![t] } else { Vec::new() }));
        staged.push((args, scratch, repeat));
    }
    for _ in 0..ROUNDS {
        for ((launch, (args, scratch, repeat)), samples) in launches.iter().zip(&staged).zip(&mut samples) {
            if let Some(list) = samples
                && list.first().is_none_or(|&t| t <= LONG)
            {
                match run(device, launch, args, scratch.as_ref(), *repeat) {
                    Ok(t) => list.push(t / *repeat),
                    Err(_) => *samples = None,
                }
            }
        }
    }
    Ok(samples.into_iter().map(|s| s.and_then(median)).collect())
}

/// What one sample should last at least.
const SAMPLE: Duration = Duration::from_micros(500);
/// A kernel that takes longer is measured once.
const LONG: Duration = Duration::from_millis(20);
const ROUNDS: usize = 5;

/// True where measuring the operation on the device would not take unreasonably long.
pub(crate) fn is_quick(device: &Device, op: &Op) -> bool {
    let limit = match device.info().kind {
        Kind::Reference => 2_000_000,
        Kind::Cpu | Kind::SoftwareGpu => 20_000_000_000,
        _ => 1_000_000_000_000,
    };
    let cost = op.cost();
    cost.flops.max(cost.bytes) <= limit
}

/// Runs the kernel on small operands and compares with the reference. The inner `Err` says what was wrong, a failing driver
/// included; only want of memory is no verdict.
pub(crate) fn self_test(device: &Device, launch: &Launch) -> Result<Result<(), String>> {
    let op = launch.op();
    let check = || -> Result<Result<(), String>> {
        let plain = operands(device, op, &[])?;
        let mut expected = Arrays::default();
        for (o, view) in op.operands().iter().zip(&plain) {
            let array = if o.role == Role::Out { Array::zeros(o.spec) } else { fetch(device, o, view)? };
            expected.push(o.name, array);
        }
        op.reference(&mut expected)?;
        let args = forms(device, launch, &plain, &[])?;
        let scratch = launch.plan().scratch();
        let scratch = if scratch > 0 { Some(device.pooled(scratch)?) } else { None };
        launch.run(&args, scratch.as_ref())?;
        device.sync()?;
        for (o, view) in op.operands().iter().zip(&args).filter(|(o, _)| o.role.writes()) {
            if let Err(why) = op.accept(o.name, &expected, &fetch(device, o, view)?) {
                return Ok(Err(format!("wrong result: {why} in {op}")));
            }
        }
        Ok(Ok(()))
    };
    match check() {
        Err(e @ Error::OutOfMemory { .. }) => Err(e),
        Err(e) => Ok(Err(e.to_string())),
        verdict => verdict,
    }
}

fn fetch(device: &Device, operand: &Operand, view: &View) -> Result<Array> {
    let mut bytes = vec![0; operand.spec.span()];
    device.backend().read(&view.slice(0, bytes.len())?, &mut bytes)?;
    Array::decode(operand.spec, &bytes)
}

fn run(device: &Device, launch: &Launch, args: &[View], scratch: Option<&View>, repeat: u32) -> Result<Duration> {
    device.backend().time(&mut || (0..repeat).try_for_each(|_| launch.run(args, scratch)))
}

fn median(mut samples: Vec<Duration>) -> Option<Duration> {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied()
}

/// The operands of `op` with legal contents, plain; a lent one stands as it is.
fn operands(device: &Device, op: &Op, lent: &[Lent]) -> Result<Vec<View>> {
    let mut rng = Rng(0x7e5e1a);
    let fill = |(i, o): (usize, &Operand)| {
        if let Some((_, view)) = lent.get(i).and_then(Option::as_ref) {
            return Ok(view.clone());
        }
        let view = View::whole(device.backend().alloc(o.spec.span())?);
        let mut bytes = vec![0xff; o.spec.span()]; // NaN where the operation writes nothing
        if o.role != Role::Out {
            contents(op, o, &mut rng, &mut bytes)?;
        }
        device.backend().write(&view, &bytes)?;
        Ok(view)
    };
    op.operands().iter().enumerate().map(fill).collect()
}

/// More elements than this repeat themselves in float and quantized operands: drawing each would take longer than measuring.
const DRAWN: usize = 1 << 16;

/// Writes legal contents into an operand's memory; what lies in gaps is zero.
pub(crate) fn contents(op: &Op, operand: &Operand, rng: &mut Rng, bytes: &mut [u8]) -> Result<()> {
    let spec = operand.spec;
    let (block, size) = spec.dtype().block();
    // An odd number of blocks, so that rows begin at different ones and differ: equal rows would make one outcome of many.
    let tiled = (DRAWN.div_ceil(block) | 1) * block;
    if spec.numel() > tiled && spec.is_dense() && (block > 1 || spec.dtype().is_float()) {
        let small = Operand { spec: crate::Spec::new(spec.dtype(), &[tiled])?, ..*operand };
        let mut data = op.fill(&small, Fill::Normal, rng);
        if !data.is_empty() {
            data = data.iter().copied().cycle().take(tiled).collect();
            let mut tile = vec![0; tiled / block * size];
            Array { spec: small.spec, data, magnitude: Vec::new() }.encode(None, &mut tile)?;
            for part in bytes.chunks_mut(tile.len()) {
                part.copy_from_slice(&tile[..part.len()]);
            }
            return Ok(());
        }
    }
    bytes.fill(0); // gaps between strided elements
    Array { spec, data: op.fill(operand, Fill::Normal, rng), magnitude: Vec::new() }.encode(None, bytes)
}

/// The arguments as the kernel wants them: weights packed where it says so.
fn forms(device: &Device, launch: &Launch, plain: &[View], lent: &[Lent]) -> Result<Vec<View>> {
    let specs = launch.op().operands();
    let form = |(i, view): (usize, &View)| {
        if launch.plan().packing(i).is_none() || lent.get(i).is_some_and(Option::is_some) {
            return Ok(view.clone());
        }
        let mut bytes = vec![0; view.len()];
        device.backend().read(view, &mut bytes)?;
        weight::pack(device, launch, i, &specs[i].spec, &bytes)
    };
    plain.iter().enumerate().map(form).collect()
}
