//! The kit itself is tested: devices that are wrong in one way each, made from the reference, must all be caught.
#![cfg(feature = "conformance")]

use std::sync::{
    Arc, Mutex, Weak,
    atomic::{AtomicU64, Ordering},
};
use std::{collections::HashMap, ops::Range, time::Duration};

use tesela::{
    Backend, Buffer, DType, DeviceInfo, Error, Op, Plan, Plans, Reference, Result, View,
    backend::{OpenOptions, Packing, RawBuffer, Token},
    conformance::{Options, Verdict, check_with},
    dispatch::Launch,
    op::{Array, Arrays, Determinism, Role},
};

/// What is wrong with a device.
#[derive(Clone, Copy)]
enum Fault {
    /// Nothing: the honest device, computing through the same detour.
    None,
    /// A word of the operation's text is overlooked: an operand or a field.
    Overlooks(&'static str),
    /// Inputs are not what they are taken for.
    Inputs(fn(&Op, &mut Arrays)),
    /// Outputs come out wrong. Given are the arrays after the computation, and as they were before.
    Outputs(fn(&Op, &mut Arrays, &Arrays)),
    /// Something happens to memory beside the right answer.
    Memory(fn(&Reference, &Op, &[View])),
    /// Strides are taken for dense ones.
    IgnoresStrides,
    /// Writes rows with the gaps between them.
    WritesGaps,
    /// What an earlier launch left in the scratch memory changes the answer.
    StaleScratch,
    /// Uses more scratch memory than it asked for.
    ScratchOverrun,
    /// Packs every range of rows to the beginning.
    PacksToTheFront,
    /// The packed form is twice the size of the plain one.
    PacksWastefully,
    /// Copies to the device overtake the work enqueued before.
    WritesOvertake,
    /// Copies to the host do not wait.
    ReadsOvertake,
    /// The queue does not own what it still needs.
    ForgetsOperands,
    /// Two launches give different bits, each within the bound.
    Jitters,
    /// Declares less reproducibility than asked for.
    PromisesLittle,
    /// Plans to nothing.
    EmptyPlans,
    /// Panics on empty tensors.
    PanicsOnEmpty,
    /// New memory is dirty.
    DirtyMemory,
    /// An absurd allocation is called a fault of the device.
    WrongOutOfMemory,
    /// Writes outside a copy's range.
    SloppyCopies,
    /// Claims that nothing takes time.
    TimelessTimer,
    /// Runs what is timed, and loses its faults.
    DeafTimer,
    /// A different kernel at every question.
    FicklePlans,
    /// The weights an operation first had are used in every later one like it.
    KeepsWeights,
}

#[derive(Debug)]
struct Broken(Arc<Device>);

struct Device {
    inner: Reference,
    fault: Fault,
    count: AtomicU64,
    pending: Mutex<Vec<Work>>,
    weights: Mutex<HashMap<Op, Vec<f64>>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Broken")
    }
}

/// A launch that is put off until the queue is drained.
struct Work {
    op: Op,
    args: Vec<(Weak<dyn RawBuffer>, usize, usize)>,
    keep: Vec<View>,
}

impl Device {
    fn drain(&self) -> Result<()> {
        let all = std::mem::take(&mut *self.pending.lock().unwrap());
        for work in all {
            let found = |(weak, offset, len): &(Weak<dyn RawBuffer>, usize, usize)| {
                weak.upgrade().map(|b| View::whole(b).slice(*offset, *len).unwrap())
            };
            if let Some(args) = work.args.iter().map(found).collect::<Option<Vec<_>>>() {
                self.compute(&work.op, &args)?;
            }
            drop(work.keep);
        }
        Ok(())
    }

    /// The reference, with the fault in between.
    fn compute(&self, op: &Op, args: &[View]) -> Result<()> {
        let operands = op.operands();
        if matches!(op, Op::Convert(_)) && operands[0].spec.dtype() == operands[1].spec.dtype() {
            // Blocks are copied as they are; there is nothing to spoil in between.
            return Launch::new(op, self.inner.plan(op)?.remove(0), self.inner.token())?.run(args, None);
        }
        let (mut arrays, mut stored) = (Arrays::default(), Vec::new());
        for (o, view) in operands.iter().zip(args) {
            let mut bytes = vec![0; o.spec.span()];
            self.inner.read(&view.slice(0, o.spec.span())?, &mut bytes)?;
            let spec =
                if matches!(self.fault, Fault::IgnoresStrides) && !o.role.writes() { o.spec.dense() } else { o.spec };
            bytes.resize(bytes.len().max(spec.span()), 0);
            let mut array = Array::decode(spec, &bytes)?;
            array.spec = o.spec;
            bytes.truncate(o.spec.span());
            arrays.push(o.name, array);
            stored.push(bytes);
        }
        let before = arrays.clone();
        for o in operands.iter().filter(|o| o.role == Role::Out) {
            set(&mut arrays, o.name, vec![0.0; o.spec.numel()]);
        }
        if let Fault::Inputs(spoil) = self.fault {
            spoil(op, &mut arrays);
        }
        if let (Fault::KeepsWeights, Some(w)) = (self.fault, arrays.get("w").map(|w| w.data.clone())) {
            let first = self.weights.lock().unwrap().entry(*op).or_insert(w).clone();
            set(&mut arrays, "w", first);
        }
        let asked = match self.fault {
            Fault::Overlooks(word) => without(op, word),
            _ => *op,
        };
        let mut seen = Arrays::default();
        for o in &asked.operands() {
            seen.push(o.name, of(&arrays, o.name).clone());
        }
        asked.reference(&mut seen)?;
        for (name, array) in seen.iter() {
            *arrays.get_mut(name).unwrap() = array.clone();
        }
        match self.fault {
            Fault::Outputs(spoil) => spoil(op, &mut arrays, &before),
            Fault::Jitters if self.count.fetch_add(1, Ordering::Relaxed) % 2 == 1 => {
                each_output(op, &mut arrays, |_, v| f32::from_bits((v as f32).to_bits().wrapping_add(1)) as f64);
            }
            _ => {}
        }
        for ((o, view), mut bytes) in operands.iter().zip(args).zip(stored).filter(|((o, _), _)| o.role.writes()) {
            if matches!(self.fault, Fault::WritesGaps) {
                bytes.fill(0);
            }
            let old = (o.role == Role::InOut).then(|| of(&before, o.name).data.as_slice());
            of(&arrays, o.name).encode(old, &mut bytes)?;
            self.inner.write(&view.slice(0, bytes.len())?, &bytes)?;
        }
        if let Fault::Memory(spoil) = self.fault {
            spoil(&self.inner, op, args);
        }
        Ok(())
    }
}

impl Backend for Broken {
    fn info(&self) -> &DeviceInfo {
        self.0.inner.info()
    }
    fn token(&self) -> Token {
        self.0.inner.token()
    }
    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        match (self.0.fault, self.0.inner.alloc(bytes)) {
            (Fault::WrongOutOfMemory, Err(_)) => Err(Error::device("broken", "alloc", "something went wrong")),
            (Fault::DirtyMemory, Ok(buffer)) => {
                self.0.inner.write(&View::whole(buffer.clone()), &vec![0xcd; bytes])?;
                Ok(buffer)
            }
            (_, result) => result,
        }
    }
    fn write(&self, dst: &View, src: &[u8]) -> Result<()> {
        if !matches!(self.0.fault, Fault::WritesOvertake) {
            self.0.drain()?;
        }
        self.0.inner.write(dst, src)?;
        if matches!(self.0.fault, Fault::SloppyCopies) && !src.len().is_multiple_of(4) {
            // rounds up to whole words
            let whole = View::whole(dst.buffer().clone());
            if let Ok(next) = whole.slice(dst.offset() + dst.len(), 4 - src.len() % 4) {
                self.0.inner.write(&next, &vec![0; next.len()])?;
            }
        }
        Ok(())
    }
    fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        if matches!(self.0.fault, Fault::ReadsOvertake) {
            self.0.inner.read(src, dst)?;
            return self.0.drain();
        }
        self.0.drain()?;
        self.0.inner.read(src, dst)
    }
    fn plan(&self, op: &Op) -> Result<Plans> {
        if matches!(self.0.fault, Fault::EmptyPlans) {
            return Ok(Vec::new());
        }
        let number =
            if matches!(self.0.fault, Fault::FicklePlans) { self.0.count.fetch_add(1, Ordering::Relaxed) } else { 0 };
        Ok(vec![Arc::new(Kernel { op: *op, name: format!("broken-f64-{number}"), device: self.0.clone() })])
    }
    fn sync(&self) -> Result<()> {
        self.0.drain()
    }
    fn time(&self, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        match self.0.fault {
            Fault::TimelessTimer => enqueue().map(|()| Duration::ZERO),
            Fault::DeafTimer => Ok(Duration::from_micros(1 + u64::from(enqueue().is_ok()))),
            _ => self.0.inner.time(enqueue),
        }
    }
}

#[derive(Debug)]
struct Kernel {
    op: Op,
    name: String,
    device: Arc<Device>,
}

impl Plan for Kernel {
    fn name(&self) -> &str {
        &self.name
    }
    fn op(&self) -> Op {
        self.op
    }
    fn scratch(&self) -> usize {
        if matches!(self.device.fault, Fault::StaleScratch | Fault::ScratchOverrun) { 64 } else { 0 }
    }
    fn determinism(&self) -> Determinism {
        if matches!(self.device.fault, Fault::PromisesLittle) { Determinism::Any } else { Determinism::BatchInvariant }
    }
    fn packing(&self, operand: usize) -> Option<Packing> {
        let o = self.op.operands()[operand];
        let bytes = match self.device.fault {
            Fault::PacksToTheFront | Fault::None => o.spec.bytes(),
            Fault::PacksWastefully => 2 * o.spec.bytes(),
            _ => return None,
        };
        let plain = o.role == Role::Weight && o.spec.is_dense();
        plain.then_some(Packing { name: "as-is", bytes, rows: 4 })
    }
    unsafe fn pack(&self, operand: usize, rows: Range<usize>, plain: &View, packed: &View) -> Result<()> {
        let spec = self.op.operands()[operand].spec;
        let mut bytes = vec![0; plain.len()];
        self.device.inner.read(plain, &mut bytes)?;
        let at = if matches!(self.device.fault, Fault::PacksToTheFront) { 0 } else { rows.start };
        let at = spec.dtype().bytes(at * spec.dim(0)).unwrap();
        self.device.inner.write(&packed.slice(at, bytes.len())?, &bytes)
    }
    unsafe fn launch(&self, args: &[View], scratch: Option<&View>) -> Result<()> {
        let inner = &self.device.inner;
        match self.device.fault {
            Fault::WritesOvertake | Fault::ReadsOvertake | Fault::ForgetsOperands => {
                let weak = |v: &View| (Arc::downgrade(v.buffer()), v.offset(), v.len());
                let keeps = !matches!(self.device.fault, Fault::ForgetsOperands);
                let keep = if keeps { args.to_vec() } else { Vec::new() };
                let work = Work { op: self.op, args: args.iter().map(weak).collect(), keep };
                self.device.pending.lock().unwrap().push(work);
                return Ok(());
            }
            Fault::PanicsOnEmpty => assert!(self.op.operands().iter().all(|o| o.spec.numel() > 0), "empty"),
            _ => {}
        }
        self.device.compute(&self.op, args)?;
        if let Some(scratch) = scratch {
            let mut first = [0];
            inner.read(&scratch.slice(0, 1)?, &mut first)?;
            if matches!(self.device.fault, Fault::ScratchOverrun) {
                let beyond = View::whole(scratch.buffer().clone()).slice(scratch.offset() + 64, 1)?;
                inner.write(&beyond, &[1])?;
            } else if first[0] == 1 {
                let out = &args[self.op.operands().iter().position(|o| o.role.writes()).unwrap()];
                inner.write(out, &vec![0; out.len()])?;
            }
            inner.write(&scratch.slice(0, 1)?, &[1])?;
        }
        Ok(())
    }
}

/// The operation without one word of its text, where that is still an operation.
fn without(op: &Op, key: &str) -> Op {
    let text = op.to_string();
    let words: Vec<&str> = text.split(' ').filter(|w| w.split('=').next() != Some(key)).collect();
    words.join(" ").parse().ok().filter(|op: &Op| op.validate().is_ok()).unwrap_or(*op)
}

fn of<'a>(arrays: &'a Arrays, name: &str) -> &'a Array {
    arrays.get(name).unwrap()
}

fn set(arrays: &mut Arrays, name: &str, data: Vec<f64>) {
    arrays.get_mut(name).unwrap().data = data;
}

fn each_output(op: &Op, arrays: &mut Arrays, change: impl Fn(DType, f64) -> f64) {
    for o in op.operands().iter().filter(|o| o.role.writes()) {
        let data = of(arrays, o.name).data.iter().map(|&v| change(o.spec.dtype(), v)).collect();
        set(arrays, o.name, data);
    }
}

/// Where an operand has its last element, and the bytes of one.
fn end(op: &Op, args: &[View], writes: bool) -> Option<(View, usize)> {
    let operands = op.operands();
    let i = operands.iter().position(|o| o.role.writes() == writes)?;
    Some((View::whole(args[i].buffer().clone()), args[i].offset() + operands[i].spec.span()))
}

const FAULTS: &[(&str, &str, Fault)] = &[
    // options overlooked
    ("matmul without its bias", "matmul bias", Fault::Overlooks("bias")),
    ("matmul without its residual", "matmul residual", Fault::Overlooks("residual")),
    ("matmul without its activation", "matmul act=", Fault::Overlooks("act")),
    ("matmul without its scale", "matmul scale=", Fault::Overlooks("scale")),
    ("matmul without the second factor", "matmul up=", Fault::Overlooks("up")),
    ("scales of weights overlooked", "matmul w_scale", Fault::Overlooks("w_scale")),
    ("scales of rows overlooked", "matmul x_scale", Fault::Overlooks("x_scale")),
    ("layer norm taken for rms norm", "norm kind=layer", Fault::Overlooks("kind")),
    ("every norm with the same eps", "norm eps=", Fault::Overlooks("eps")),
    ("norm without its residual", "norm residual", Fault::Overlooks("residual")),
    ("norm without its gate", "norm gate", Fault::Overlooks("gate")),
    ("rope with the wrong pairs", "rope style=half", Fault::Overlooks("style")),
    ("rope of all dimensions", "rope dims=", Fault::Overlooks("dims")),
    ("rope without rescaling", "rope factor=", Fault::Overlooks("factor")),
    ("softmax without its mask", "softmax mask", Fault::Overlooks("mask")),
    ("attention without its window", "attention window=", Fault::Overlooks("window")),
    ("attention without causality", "attention causal=", Fault::Overlooks("causal")),
    ("attention without softcap", "attention softcap=", Fault::Overlooks("softcap")),
    ("attention without sinks", "attention sinks", Fault::Overlooks("sinks")),
    ("attention that ignores kv_len", "attention kv_len", Fault::Overlooks("kv_len")),
    ("attention without slopes", "attention alibi", Fault::Overlooks("alibi")),
    ("attention without its key mask", "attention key_mask", Fault::Overlooks("key_mask")),
    ("a scan without softplus", "ssm_scan softplus", Fault::Overlooks("softplus")),
    ("a scan without its direct path", "ssm_scan d=", Fault::Overlooks("d")),
    // inputs mistaken
    ("one key too many", "attention kv_len", Fault::Inputs(one_key_more)),
    (
        "operands swapped",
        "elementwise function=silu-mul",
        Fault::Inputs(|_, arrays| {
            if let Some(b) = arrays.get("b").map(|b| b.data.clone()).filter(|b| b.len() == of(arrays, "a").data.len()) {
                let a = of(arrays, "a").data.clone();
                set(arrays, "a", b);
                set(arrays, "b", a);
            }
        }),
    ),
    (
        "the halves of a block swapped",
        "matmul q4_0",
        Fault::Inputs(|_, arrays| {
            let w = arrays.get_mut("w").unwrap();
            if w.spec.dtype() == DType::Q4_0 {
                w.data.as_chunks_mut::<32>().0.iter_mut().for_each(|block| block.rotate_left(16));
            }
        }),
    ),
    (
        "activations in 8 bits where exact was asked for",
        "matmul q8_0",
        Fault::Inputs(|_, arrays| {
            let largest = of(arrays, "x").data.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            let unit = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            let rounded = of(arrays, "x").data.iter().map(|v| (v / unit).round() * unit).collect();
            set(arrays, "x", rounded);
        }),
    ),
    // outputs wrong
    (
        "the last column left out",
        "matmul x=f32",
        Fault::Outputs(|op, arrays, before| {
            for o in op.operands().iter().filter(|o| o.role == Role::Out && o.spec.numel() > 0) {
                let last = of(before, o.name).data.len() - 1;
                arrays.get_mut(o.name).unwrap().data[last] = of(before, o.name).data[last];
            }
        }),
    ),
    (
        "added to what was there",
        "matmul x=f32",
        Fault::Outputs(|op, arrays, before| {
            for o in op.operands().iter().filter(|o| o.role == Role::Out) {
                let sum = of(arrays, o.name).data.iter().zip(&of(before, o.name).data).map(|(a, b)| a + b).collect();
                set(arrays, o.name, sum);
            }
        }),
    ),
    (
        "NaN swallowed",
        "elementwise special",
        Fault::Outputs(|op, arrays, _| {
            each_output(op, arrays, |_, v| if v.is_nan() { 0.0 } else { v });
        }),
    ),
    (
        "infinities saturated",
        "elementwise large",
        Fault::Outputs(|op, arrays, _| {
            each_output(op, arrays, |_, v| v.clamp(-3e38, 3e38));
        }),
    ),
    (
        "bf16 by truncation",
        "matmul out=bf16",
        Fault::Outputs(|op, arrays, _| {
            each_output(op, arrays, |d, v| {
                if d == DType::BF16 { f32::from_bits((v as f32).to_bits() & 0xffff_0000) as f64 } else { v }
            });
        }),
    ),
    ("sums in half precision", "matmul out=f32", Fault::Outputs(halves)),
    (
        "the last of equals",
        "reduce kind=arg-max",
        Fault::Outputs(|op, arrays, _| {
            if let Op::Reduce(_) = op {
                let x = of(arrays, "x");
                let last = |row: &[f64], i: f64| {
                    let Some(&best) = row.get(i as usize) else { return i };
                    row.iter().rposition(|v| *v == best).map_or(i, |p| p as f64)
                };
                let data = of(arrays, "out").data.iter().enumerate().map(|(r, &i)| last(x.row(r), i)).collect();
                set(arrays, "out", data);
            }
        }),
    ),
    (
        "causality off by one",
        "attention causal=",
        Fault::Outputs(|op, arrays, _| {
            // Each query sees what the one before it may see: queries moved up, answers moved down.
            if let Op::Attention(a) = op
                && a.causal
                && a.q.rank() == 4
            {
                let (rows, answer) = (a.q.shape()[1], a.out.numel() / (a.q.shape()[0] * a.q.shape()[1]).max(1));
                let question = a.q.numel() / (a.q.shape()[0] * rows).max(1);
                let mut moved = arrays.clone();
                let q = of(&moved, "q").data.chunks(question * rows);
                let q = q.flat_map(|b| [&b[question..], &b[..question]].concat()).collect();
                set(&mut moved, "q", q);
                op.reference(&mut moved).unwrap();
                let out = of(&moved, "out").data.chunks(answer * rows);
                let out = out.flat_map(|b| [&vec![0.0; answer], &b[..b.len() - answer]].concat()).collect();
                set(arrays, "out", out);
            }
        }),
    ),
    (
        "a cache cleared on the way",
        "kv_append",
        Fault::Outputs(|op, arrays, before| {
            for o in op.operands().iter().filter(|o| o.role == Role::InOut) {
                let (new, old) = (&of(arrays, o.name).data, &of(before, o.name).data);
                let data = new.iter().zip(old).map(|(n, o)| if n == o { 0.0 } else { *n }).collect();
                set(arrays, o.name, data);
            }
        }),
    ),
    // memory
    (
        "one byte past the end",
        "matmul",
        Fault::Memory(|device, op, args| {
            let (buffer, end) = end(op, args, true).unwrap();
            device.write(&buffer.slice(end, 1).unwrap(), &[0]).unwrap();
        }),
    ),
    (
        "an input changed",
        "matmul",
        Fault::Memory(|device, op, args| {
            let (buffer, end) = end(op, args, false).unwrap();
            if op.operands()[0].spec.span() > 0 {
                device.write(&buffer.slice(end - 1, 1).unwrap(), &[0x17]).unwrap();
            }
        }),
    ),
    (
        "a sum that reads past the row",
        "matmul",
        Fault::Memory(|device, op, args| {
            let (input, after) = end(op, args, false).unwrap();
            let mut beyond = [0; 4];
            device.read(&input.slice(after, 4).unwrap(), &mut beyond).unwrap();
            let (output, end) = end(op, args, true).unwrap();
            let out = op.operands().iter().find(|o| o.role.writes()).unwrap().spec;
            if out.numel() > 0 && out.dtype() == DType::F32 {
                let last = output.slice(end - 4, 4).unwrap();
                let mut value = [0; 4];
                device.read(&last, &mut value).unwrap();
                let sum = f32::from_le_bytes(value) + 0.0 * f32::from_le_bytes(beyond);
                device.write(&last, &sum.to_le_bytes()).unwrap();
            }
        }),
    ),
    ("strides ignored", "matmul f32 @", Fault::IgnoresStrides),
    ("gaps between rows written", "matmul f32 @", Fault::WritesGaps),
    ("stale scratch memory", "matmul f32", Fault::StaleScratch),
    ("more scratch memory than asked for", "matmul f32", Fault::ScratchOverrun),
    ("weights packed to the front", "matmul", Fault::PacksToTheFront),
    ("weights packed to twice their size", "matmul", Fault::PacksWastefully),
    // the contract
    ("writes overtake work", "contract", Fault::WritesOvertake),
    ("reads overtake work", "contract", Fault::ReadsOvertake),
    ("operands forgotten while in flight", "contract", Fault::ForgetsOperands),
    ("dirty memory", "contract", Fault::DirtyMemory),
    ("out of memory by another name", "contract", Fault::WrongOutOfMemory),
    ("copies of whole words only", "contract", Fault::SloppyCopies),
    ("a timer that says nothing", "contract", Fault::TimelessTimer),
    ("a timer that hides faults", "contract", Fault::DeafTimer),
    ("fickle planning", "contract", Fault::FicklePlans),
    ("jitter", "matmul out=f32", Fault::Jitters),
    ("little promised", "matmul", Fault::PromisesLittle),
    ("no kernels and no reason", "matmul", Fault::EmptyPlans),
    ("panics on empty tensors", "matmul", Fault::PanicsOnEmpty),
    // composed blocks, caught without the cases of their operations
    ("layers without their residual's factor", "block decoder-4 f32 #0", Fault::Overlooks("scale")),
    ("layers in half precision", "block decoder-4 f32 #0", Fault::Outputs(halves)),
    ("the first layer's weights in every layer", "block decoder-4 f32 #0", Fault::KeepsWeights),
    ("a block with the wrong pairs", "block attention f32 #0", Fault::Overlooks("style")),
    ("a block with one key too many", "block attention f32 #0", Fault::Inputs(one_key_more)),
    ("a block with the wrong pairs, in bf16", "block attention bf16 #0", Fault::Overlooks("style")),
    ("a block that sees its padding", "block encoder q8_0 #0", Fault::Overlooks("kv_len")),
    ("experts without their shares", "block moe q4_k #0", Fault::Overlooks("row_scale")),
    ("a step that forgets the prefill", "block mamba-2 f32 #0", Fault::Overlooks("state")),
    ("blocks out of order", "block attention f32 #0", Fault::ReadsOvertake),
];

fn one_key_more(_: &Op, arrays: &mut Arrays) {
    if let Some(len) = arrays.get("kv_len") {
        let more = len.data.iter().map(|n| n + 1.0).collect();
        set(arrays, "kv_len", more);
    }
}

fn halves(op: &Op, arrays: &mut Arrays, _: &Arrays) {
    each_output(op, arrays, |_, v| half::f16::from_f64(v).to_f64());
}

fn broken(fault: Fault) -> Broken {
    let inner = Reference::open(&OpenOptions::default());
    Broken(Arc::new(Device {
        inner,
        fault,
        count: AtomicU64::new(0),
        pending: Mutex::default(),
        weights: Mutex::default(),
    }))
}

fn options(filter: &str) -> Options {
    Options { filter: Some(filter.to_string()).filter(|f| !f.is_empty()), ..Options::default() }
}

#[test]
fn every_broken_device_is_caught() {
    std::panic::set_hook(Box::new(|_| {})); // some of the devices panic; the kit turns that into a verdict
    let missed = FAULTS.iter().filter_map(|(name, filter, fault)| {
        let report = check_with(&broken(*fault), &options(filter), &mut |_, _| {});
        (report.with(Verdict::Failed).count() == 0).then(|| format!("{name} ({} cases)", report.outcomes.len()))
    });
    let missed: Vec<String> = missed.collect();
    drop(std::panic::take_hook());
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}

#[test]
fn the_same_device_without_a_fault_passes() {
    check_with(&broken(Fault::None), &options(""), &mut |_, _| {}).assert();
}
