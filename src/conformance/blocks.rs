//! Whole blocks of models: do right operations compose, and how far does the result drift from f64?
//!
//! A block is a straight-line program of operations over named tensors. The device runs it back to back, each operation
//! by its first kernel, reading nothing but the end; the references run it in f64 without rounding anything in between.
//! Weights are rounded or quantized before either sees them.

use std::fmt;

use super::{
    Level, Options, Outcome, Stats, Verdict,
    case::fnv1a,
    guarded,
    run::{NAN, plans},
};
use crate::{
    backend::{Backend, View},
    dispatch::Launch,
    dtype::DType,
    error::{Error, Result},
    layout::Spec,
    op::{Array, Arrays, Bound, Fill, Op, Operand, Rng, Role, ulp, words},
};

words! {
    /// What a block is made of.
    Kind {
        /// Norm, q k v, rotation, cache, causal attention, output: a prefill and a step.
        Attention = "attention",
        /// Norm, router, the two best of eight experts.
        Moe = "moe",
        /// Norm, fused projection, convolution, scan, gated norm, output: a prefill and a step.
        Mamba2 = "mamba-2",
        /// Embedding, four layers of attention and a gated pair, logits: a prefill and a step.
        Decoder = "decoder-4",
        /// Attention over two padded sequences, a feed-forward pair, norms after each.
        Encoder = "encoder",
    }
}

/// A block with its dtypes (of activations and of weights) and its numbers. Prints as `block KIND WEIGHTS #SEED`.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    kind: Kind,
    activations: DType,
    weights: DType,
    seed: u64,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} {} #{}", self.kind, self.weights, self.seed)
    }
}

const TYPES: [(DType, DType); 4] =
    [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::F32, DType::Q8_0), (DType::F32, DType::Q4_K)];

/// The blocks that the options choose; the quick ones are all f32.
pub fn blocks(options: &Options) -> Vec<Block> {
    let filter = options.filter.as_deref().unwrap_or_default();
    let named = filter.rsplit_once('#').and_then(|(_, seed)| seed.parse().ok());
    let seed = named.unwrap_or(options.seed);
    let all = Kind::ALL
        .iter()
        .flat_map(|&kind| TYPES.iter().map(move |&(activations, weights)| Block { kind, activations, weights, seed }));
    let words: Vec<&str> = filter.split_ascii_whitespace().collect();
    let chosen = |b: &Block| {
        let level = match b.kind {
            Kind::Attention | Kind::Decoder | Kind::Encoder => Level::Attention,
            Kind::Mamba2 => Level::Ssm,
            Kind::Moe => Level::Core,
        };
        let text = b.to_string();
        (options.levels.is_empty() || options.levels.contains(&level))
            && (!options.quick || b.weights == DType::F32)
            && words.iter().all(|w| text.contains(w))
    };
    all.filter(chosen).collect()
}

/// Runs a block on the device and in f64.
pub fn check(device: &dyn Backend, block: &Block) -> Outcome {
    let mut outcome = Outcome {
        id: block.to_string(),
        op: "block",
        dtypes: format!("{} {}", block.kind, block.weights),
        kernel: String::new(),
        verdict: Verdict::Failed,
        why: String::new(),
        stats: None,
    };
    let answer = guarded(|| block.try_check(device, &mut outcome));
    (outcome.verdict, outcome.why) = match answer {
        Ok(Ok(Ok(()))) => (Verdict::Passed, String::new()),
        Ok(Ok(Err(why))) => (Verdict::Failed, why),
        Ok(Err(Error::Unsupported { op, why })) => (Verdict::Declined, format!("{op}: {why}")),
        Ok(Err(e)) => (Verdict::Failed, e.to_string()),
        Err(panic) => (Verdict::Failed, panic),
    };
    outcome
}

impl Block {
    fn try_check(&self, device: &dyn Backend, outcome: &mut Outcome) -> Result<Result<(), String>> {
        let mut program = Program::new(self);
        let output = match self.kind {
            Kind::Attention => program.attention_block(),
            Kind::Moe => program.moe(),
            Kind::Mamba2 => program.mamba2_block(),
            Kind::Decoder => program.decoder(),
            Kind::Encoder => program.encoder(),
        }?;
        let launches = program.launches(device)?;
        let mut kernels: Vec<&str> = launches.iter().map(|l| l.plan().name()).collect();
        kernels.sort_unstable();
        kernels.dedup();
        outcome.kernel = kernels.join(", ");
        let expected = program.expected(&mut Rng(fnv1a(self.to_string().as_bytes())))?;
        let tensor = program.find(output)?;
        let got = program.run(device, &launches, &expected.inputs, tensor)?;

        let spec = Spec::new(program.tensors[tensor].dtype, &[program.tensors[tensor].len])?;
        let want = Array { spec, data: expected.values[tensor].clone(), magnitude: Vec::new() };
        let got = Array::decode(spec, &got)?;
        let stats = Stats::new(&Bound::relative(expected.drift.sqrt()), &want, &got);
        let (nmse, distance, limit) = (stats.nmse, stats.cosine_distance, expected.drift);
        outcome.stats = Some(stats);
        let finite = |a: &Array| a.data.iter().all(|v| v.is_finite());
        if !finite(&want) || !finite(&got) {
            return Ok(Err("the result holds NaN or infinities".into()));
        }
        // An error of relative length r turns a vector by an angle whose cosine is at least sqrt(1 - r^2).
        Ok(if nmse <= limit && distance <= 1.0 - (1.0 - limit).max(0.0).sqrt() + f64::EPSILON {
            Ok(())
        } else {
            Err(format!("drifts to nmse {nmse:.2e}, 1 - cosine {distance:.2e}; allowed is nmse {limit:.2e}"))
        })
    }
}

/// Operations in order, over tensors by number.
struct Program {
    activations: DType,
    weights: DType,
    tensors: Vec<Tensor>,
    steps: Vec<Step>,
}

/// A flat piece of memory that operands are parts of.
struct Tensor {
    name: String,
    dtype: DType,
    /// Elements.
    len: usize,
    source: Source,
}

/// What a tensor holds that is read before it is written.
enum Source {
    /// What the operation's own cases are filled with, weights scaled to keep the size of activations.
    Random,
    Given(Vec<f64>),
    /// Made of the experts chosen for each token. The f64 run's choice serves the device too: near a tie the other one
    /// would be as good.
    Routed(fn(&[f64]) -> Vec<f64>),
}

struct Step {
    op: Op,
    /// Of each operand, the tensor and the element it begins at.
    places: Vec<(usize, usize)>,
}

/// The f64 run.
struct Expected {
    values: Vec<Vec<f64>>,
    /// The bytes of tensors that are read before they are written.
    inputs: Vec<Option<Vec<u8>>>,
    /// The normalized mean squared error that is allowed at the end.
    drift: f64,
}

impl Program {
    fn new(block: &Block) -> Program {
        let Block { activations, weights, .. } = *block;
        Program { activations, weights, tensors: Vec::new(), steps: Vec::new() }
    }

    /// Adds an operation: its text with `TENSOR[+ELEMENT]:SPEC` for each operand, where the dtypes `a` and `w` stand for
    /// those of activations and weights. A tensor is as long as its longest use.
    fn op(&mut self, text: &str) -> Result<()> {
        let (mut words, mut named) = (Vec::new(), Vec::new());
        for word in text.split_ascii_whitespace() {
            let operand = word.split_once('=').and_then(|(key, value)| Some((key, value.split_once(':')?)));
            let Some((key, (place, spec))) = operand else {
                words.push(word.to_string());
                continue;
            };
            let (dtype, shape) = spec.split_once(':').ok_or_else(|| Error::invalid(word, "no dtype"))?;
            let dtype = match dtype {
                "a" => self.activations,
                "w" => self.weights,
                other => other.parse()?,
            };
            words.push(format!("{key}={dtype}:{shape}"));
            let (name, at) = place.split_once('+').unwrap_or((place, "0"));
            named.push((key, name, at.parse::<usize>().map_err(|e| Error::invalid(word, e))?));
        }
        let op: Op = words.join(" ").parse()?;
        op.validate()?;
        let mut places = Vec::new();
        for o in &op.operands() {
            let place = named.iter().find(|n| n.0 == o.name).ok_or_else(|| Error::invalid(op, o.name))?;
            let tensor = self.tensor(place.1, o.spec.dtype(), Source::Random);
            let (elements, bytes) = o.spec.dtype().block();
            let end = place.2 + o.spec.span() / bytes * elements;
            self.tensors[tensor].len = self.tensors[tensor].len.max(end);
            places.push((tensor, place.2));
        }
        self.steps.push(Step { op, places });
        Ok(())
    }

    fn ops(&mut self, text: &str) -> Result<()> {
        text.lines().filter(|line| !line.trim().is_empty()).try_for_each(|line| self.op(line))
    }

    /// The tensor of this name, new where there is none.
    fn tensor(&mut self, name: &str, dtype: DType, source: Source) -> usize {
        self.find(name).unwrap_or_else(|_| {
            self.tensors.push(Tensor { name: name.into(), dtype, len: 0, source });
            self.tensors.len() - 1
        })
    }

    fn find(&self, name: &str) -> Result<usize> {
        self.tensors.iter().position(|t| t.name == name).ok_or_else(|| Error::invalid(name, "no such tensor"))
    }

    fn integers(&mut self, name: &str, values: impl IntoIterator<Item = usize>) {
        let values = values.into_iter().map(|v| v as f64).collect();
        self.tensor(name, DType::I32, Source::Given(values));
    }

    /// Runs the references, filling tensors when they are first read.
    ///
    /// The allowed drift: roundings have random signs and, from one operation to the next, nothing to do with each other, so
    /// squares add. Of one operation, `Bound::relative` limits the worst element as a fraction of the absolute values
    /// summed up in it; taken as 4 deviations, the root mean square relative to the values' own stays below a quarter of it
    /// (a dot of k terms, added one by one: eps / 2 * sqrt(k / 6) under 4 eps sqrt(k) / 4). Storing a result adds a
    /// uniform error of half a unit, whose root mean square is 1 / sqrt(3) of that. What follows amplifies little, since
    /// norms and scaled weights keep sizes: by 2 at most, for products of two erring factors and the slopes of
    /// activations and softmax.
    fn expected(&self, rng: &mut Rng) -> Result<Expected> {
        const GAIN: f64 = 2.0;
        let mut values: Vec<Vec<f64>> = vec![Vec::new(); self.tensors.len()];
        let mut inputs = vec![None; self.tensors.len()];
        let mut squares = 0.0;
        for Step { op, places } in &self.steps {
            let (operands, mut arrays) = (op.operands(), Arrays::default());
            for (o, &(tensor, at)) in operands.iter().zip(places) {
                if values[tensor].is_empty() && o.role == Role::Out {
                    values[tensor] = vec![0.0; self.tensors[tensor].len];
                } else if values[tensor].is_empty() {
                    let data = self.fill(op, o, tensor, &values, rng)?;
                    let spec = Spec::new(o.spec.dtype(), &[data.len()])?;
                    let mut bytes = vec![0; spec.bytes()];
                    Array { spec, data, magnitude: Vec::new() }.encode(None, &mut bytes)?;
                    values[tensor] = Array::decode(spec, &bytes)?.data;
                    inputs[tensor] = Some(bytes);
                }
                let data = elements(&o.spec, at).map(|i| values[tensor][i]).collect();
                arrays.push(o.name, Array { spec: o.spec, data, magnitude: Vec::new() });
            }
            op.reference(&mut arrays)?;
            for (o, &(tensor, at)) in operands.iter().zip(places).filter(|(o, _)| o.role.writes()) {
                elements(&o.spec, at).zip(&arrays.of(o.name).data).for_each(|(i, v)| values[tensor][i] = *v);
                let bound = op.bound(o.name);
                let rounding = bound.ulps.max(0.5) * ulp(o.spec.dtype(), 1.0);
                squares += if o.spec.dtype() == DType::I32 {
                    0.0
                } else {
                    (bound.relative / 4.0).powi(2) + rounding.powi(2) / 3.0
                };
            }
        }
        Ok(Expected { values, inputs, drift: GAIN * GAIN * squares })
    }

    /// A tensor's values when `operand` is the first to read it.
    fn fill(&self, op: &Op, operand: &Operand, tensor: usize, values: &[Vec<f64>], rng: &mut Rng) -> Result<Vec<f64>> {
        let Tensor { dtype, len, source, .. } = &self.tensors[tensor];
        match source {
            Source::Given(values) => return Ok(values.clone()),
            Source::Routed(f) => return Ok(f(&values[self.find("chosen")?])),
            Source::Random => {}
        }
        let whole = Operand { spec: Spec::new(*dtype, &[*len])?, ..*operand };
        let mut data = op.fill(&whole, Fill::Normal, rng);
        let (offset, factor) = match (operand.role, operand.name) {
            (Role::Weight, _) => (0.0, 1.0 / (operand.spec.dim(0) as f64).sqrt()),
            (_, "weight") => (1.0, 0.1),
            (_, "bias") => (0.0, 0.1),
            _ => (0.0, 1.0),
        };
        data.iter_mut().for_each(|v| *v = offset + factor * *v);
        Ok(data)
    }

    /// Each operation with the device's first kernel for it.
    fn launches(&self, device: &dyn Backend) -> Result<Vec<Launch>> {
        let first = |Step { op, .. }: &Step| match plans(device, op)? {
            Ok(plans) => Launch::new(op, plans[0].clone(), device.token()),
            Err(why) => Err(Error::unsupported(op, why)),
        };
        self.steps.iter().map(first).collect()
    }

    /// Enqueues everything and reads one tensor.
    fn run(
        &self,
        device: &dyn Backend,
        launches: &[Launch],
        inputs: &[Option<Vec<u8>>],
        out: usize,
    ) -> Result<Vec<u8>> {
        let mut memory = Vec::new();
        for (tensor, input) in self.tensors.iter().zip(inputs) {
            let size = Spec::new(tensor.dtype, &[tensor.len])?.bytes();
            let view = View::whole(device.alloc(size)?);
            match input {
                Some(bytes) => device.write(&view, bytes)?,
                None => device.write(&view, &vec![NAN; size])?,
            }
            memory.push(view);
        }
        let scratch = launches.iter().map(|l| l.plan().scratch()).max().filter(|&n| n > 0);
        let scratch = scratch.map(|n| device.alloc(n).map(View::whole)).transpose()?;
        for (launch, step) in launches.iter().zip(&self.steps) {
            let mut args = Vec::new();
            for (i, (o, &(tensor, at))) in launch.operands().iter().zip(&step.places).enumerate() {
                let start = o.spec.dtype().bytes(at).ok_or_else(|| Error::invalid(step.op, "part of a block"))?;
                let plain = memory[tensor].slice(start, o.spec.span())?;
                args.push(match launch.plan().packing(i) {
                    Some(packing) => {
                        let packed = View::whole(device.alloc(packing.bytes)?);
                        launch.pack(i, 0..o.spec.rows(), &plain, &packed)?;
                        packed
                    }
                    None => plain,
                });
            }
            launch.run(&args, scratch.as_ref())?;
        }
        let mut bytes = vec![0; memory[out].len()];
        device.read(&memory[out], &mut bytes)?;
        Ok(bytes)
    }
}

/// Where an operand's elements lie in its tensor, in row-major order. Quantized ones are dense.
fn elements(spec: &Spec, at: usize) -> impl Iterator<Item = usize> + use<> {
    let (run, bytes) = spec.dtype().block();
    spec.offsets().flat_map(move |byte| (0..run).map(move |i| at + byte / bytes * run + i))
}

/// Rows a prefill has; a step of one row follows.
const PREFILL: usize = 5;
/// Experts, and how many of them a token goes to.
const EXPERTS: usize = 8;
const CHOSEN: usize = 2;

/// Tokens' choices in the order of the experts.
fn order(chosen: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..chosen.len()).collect();
    order.sort_by(|&i, &j| chosen[i].total_cmp(&chosen[j]));
    order.into_iter().map(|i| i as f64).collect()
}

/// Where each expert's rows begin.
fn offsets(chosen: &[f64]) -> Vec<f64> {
    (0..=EXPERTS).map(|e| chosen.iter().filter(|&&c| c < e as f64).count() as f64).collect()
}

/// The blocks. Hidden size 256; rows of the residual stream `h` are worked on in place.
impl Program {
    /// A prefill, and a step on what it left in caches and states.
    fn passes(&mut self, pass: impl Fn(&mut Program, usize, usize) -> Result<()>) -> Result<()> {
        [(PREFILL, 0), (1, PREFILL)].into_iter().try_for_each(|(rows, past)| {
            self.integers(&format!("at{past}"), past..past + rows);
            self.integers(&format!("len{past}"), [past + rows]);
            pass(self, rows, past)
        })
    }

    fn attention_block(&mut self) -> Result<&'static str> {
        self.passes(|p, t, past| p.attention("", t, past)).map(|()| "h")
    }

    /// 4 heads of 64 on 2 of keys and values; a cache for 8 rows.
    fn attention(&mut self, layer: &str, t: usize, past: usize) -> Result<()> {
        let (l, h) = (layer, past * 256);
        self.ops(&format!(
            "norm x=h+{h}:a:{t}x256 out=n:a:{t}x256 weight={l}norm:a:256
            matmul x=n:a:{t}x256 w={l}wq:w:256x256 out=q:a:{t}x256
            matmul x=n:a:{t}x256 w={l}wk:w:128x256 out=k:a:{t}x128
            matmul x=n:a:{t}x256 w={l}wv:w:128x256 out=v:a:{t}x128
            rope x=q:a:{t}x4x64 positions=at{past}:i32:{t} style=half
            rope x=k:a:{t}x2x64 positions=at{past}:i32:{t} cache={l}keys:a:8x2x64 slots=at{past}:i32:{t} style=half
            kv_append x=v:a:{t}x2x64 slots=at{past}:i32:{t} cache={l}values:a:8x2x64
            attention q=q:a:1x{t}x4x64 k={l}keys:a:1x8x2x64 v={l}values:a:1x8x2x64 out=o:a:1x{t}x4x64 kv_len=len{past}:i32:1 causal=true
            matmul x=o:a:{t}x256 w={l}wo:w:256x256 out=h+{h}:a:{t}x256 residual=h+{h}:a:{t}x256 scale=0.5"
        ))
    }

    fn decoder(&mut self) -> Result<&'static str> {
        self.integers("tokens0", [3, 41, 0, 63, 17]);
        self.integers(&format!("tokens{PREFILL}"), [29]);
        self.passes(|p, t, past| {
            let (h, at) = (past * 256, past * 64);
            p.ops(&format!("gather table=embed:w:64x256 index=tokens{past}:i32:{t} out=h+{h}:a:{t}x256 scale=12.0"))?;
            for l in 0..4 {
                p.attention(&format!("{l}."), t, past)?;
                p.ops(&format!(
                    "norm x=h+{h}:a:{t}x256 out=n:a:{t}x256 weight={l}.ffn_norm:a:256
                    matmul x=n:a:{t}x256 w={l}.gate:w:512x256 up={l}.up:w:512x256 out=m:a:{t}x512 act=silu
                    matmul x=m:a:{t}x512 w={l}.down:w:256x512 out=h+{h}:a:{t}x256 residual=h+{h}:a:{t}x256 scale=0.5"
                ))?;
            }
            p.ops(&format!(
                "norm x=h+{h}:a:{t}x256 out=n:a:{t}x256 weight=norm:a:256
                matmul x=n:a:{t}x256 w=head:w:64x256 out=logits+{at}:a:{t}x64"
            ))
        })?;
        Ok("logits")
    }

    fn moe(&mut self) -> Result<&'static str> {
        let (t, rows, groups) = (PREFILL, PREFILL * CHOSEN, EXPERTS + 1);
        self.tensor("order", DType::I32, Source::Routed(order));
        let token = |chosen: &[f64]| order(chosen).iter().map(|i| (i / CHOSEN as f64).floor()).collect();
        self.tensor("token", DType::I32, Source::Routed(token));
        self.tensor("offsets", DType::I32, Source::Routed(offsets));
        self.ops(&format!(
            "norm x=h:a:{t}x256 out=n:a:{t}x256 weight=norm:a:256
            matmul x=n:a:{t}x256 w=router:a:{EXPERTS}x256 out=scores:a:{t}x{EXPERTS}
            top_k x=scores:a:{t}x{EXPERTS} values=share:a:{t}x{CHOSEN} indices=chosen:i32:{t}x{CHOSEN} softmax=true
            gather table=share:a:{rows}x1 index=order:i32:{rows} out=row_share:f32:{rows}x1
            gather table=n:a:{t}x256 index=token:i32:{rows} out=sorted:a:{rows}x256
            grouped_matmul x=sorted:a:{rows}x256 w=gate:w:{EXPERTS}x256x256 offsets=offsets:i32:{groups} out=m:a:{rows}x256 up=up:w:{EXPERTS}x256x256 act=silu
            grouped_matmul x=m:a:{rows}x256 w=down:w:{EXPERTS}x256x256 offsets=offsets:i32:{groups} out=y:a:{rows}x256 row_scale=row_share:f32:{rows}
            scatter x=y:a:{rows}x256 index=token:i32:{rows} out=h:a:{t}x256"
        ))?;
        Ok("h")
    }

    /// 4 heads of 64, one group of 32 states. A row of the fused projection, and one of the convolution:
    ///
    /// ```text
    ///     proj  | z 256 | x 256 | b 32 | c 32 | dt 4 |      conv  | x 256 | b 32 | c 32 |
    /// ```
    fn mamba2_block(&mut self) -> Result<&'static str> {
        self.passes(|p, t, past| {
            let (h, proj, conv) = (past * 256, t * 580, t * 320);
            p.ops(&format!(
                "norm x=h+{h}:a:{t}x256 out=n:a:{t}x256 weight=norm:a:256
                matmul x=n:a:{t}x256 w=in:w:580x256 out=proj:a:{t}x580
                conv1d x=proj+256:a:1x{t}x320@{proj}x580x1 w=taps:a:320x4 out=conv:a:1x{t}x320 bias=taps_bias:a:320 state=past:f32:1x3x320 act=silu
                ssm_scan x=conv:a:1x{t}x4x64@{conv}x320x64x1 dt=proj+576:a:1x{t}x4@{proj}x580x1 a=a:f32:4 b=conv+256:a:1x{t}x1x32@{conv}x320x32x1 c=conv+288:a:1x{t}x1x32@{conv}x320x32x1 out=y:a:1x{t}x4x64 d=d:f32:4 dt_bias=dt_bias:f32:4 state=state:f32:1x4x64x32 softplus=true
                norm x=y:a:{t}x256 out=g:a:{t}x256 weight=gate_norm:a:256 gate=proj:a:{t}x256@580x1
                matmul x=g:a:{t}x256 w=out:w:256x256 out=h+{h}:a:{t}x256 residual=h+{h}:a:{t}x256"
            ))
        })?;
        Ok("h")
    }

    /// Two sequences of 5 and 3 keys, padded to 5.
    fn encoder(&mut self) -> Result<&'static str> {
        self.integers("lengths", [5, 3]);
        self.ops(
            "matmul x=h:a:10x256 w=wq:w:256x256 out=q:a:10x256 bias=bq:a:256
            matmul x=h:a:10x256 w=wk:w:256x256 out=k:a:10x256 bias=bk:a:256
            matmul x=h:a:10x256 w=wv:w:256x256 out=v:a:10x256 bias=bv:a:256
            attention q=q:a:2x5x4x64 k=k:a:2x5x4x64 v=v:a:2x5x4x64 out=o:a:2x5x4x64 kv_len=lengths:i32:2
            matmul x=o:a:10x256 w=wo:w:256x256 out=s:a:10x256 bias=bo:a:256 residual=h:a:10x256
            norm x=s:a:10x256 out=h:a:10x256 weight=norm:a:256 bias=norm_bias:a:256 kind=layer
            matmul x=h:a:10x256 w=in:w:512x256 out=m:a:10x512 bias=in_bias:a:512 act=gelu-erf
            matmul x=m:a:10x512 w=out:w:256x512 out=s:a:10x256 bias=out_bias:a:256 residual=h:a:10x256
            norm x=s:a:10x256 out=h:a:10x256 weight=last_norm:a:256 bias=last_norm_bias:a:256 kind=layer",
        )?;
        Ok("h")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backend::OpenOptions, reference::Reference};

    #[test]
    fn the_options_choose_blocks() {
        let pick = |filter: &str, quick, levels: &[Level]| {
            let (filter, levels) = (Some(filter.to_string()), levels.to_vec());
            let all = blocks(&Options { filter, quick, levels, ..Options::default() });
            all.iter().map(Block::to_string).collect::<Vec<_>>()
        };
        assert_eq!(pick("", false, &[]).len(), 20);
        assert_eq!(pick("", true, &[]).len(), 5);
        assert_eq!(pick("block moe q4_k #7", false, &[]), ["block moe q4_k #7"]);
        assert_eq!(pick("q8_0", false, &[Level::Ssm]), ["block mamba-2 q8_0 #0"]);
        assert!(pick("matmul", false, &[]).is_empty());
    }

    #[test]
    fn roundings_stay_within_the_drift_and_cover_some_of_it() {
        let device = Reference::open(&OpenOptions::default());
        for seed in 1..4 {
            let options = Options { filter: Some("block".into()), seed, ..Options::default() };
            for block in blocks(&options).iter().filter(|b| b.weights != DType::Q4_K) {
                let outcome = check(&device, block);
                assert_eq!(outcome.verdict, Verdict::Passed, "{block}: {}", outcome.why);
                let stats = outcome.stats.expect("statistics");
                println!("{block}: nmse {:.2e} cos {:.2e}", stats.nmse, stats.cosine_distance);
                // The reference rounds to the operands' dtypes, so it drifts too.
                assert!(stats.nmse > 1e-17 && stats.cosine_distance <= stats.nmse + 1e-14, "{block}: {stats:?}");
            }
        }
    }
}
