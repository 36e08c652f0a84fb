//! One token through a decoder's layers, recorded once and replayed: how close a device comes to the time that reading the weights and
//! the cache takes. The sizes are Salamandra-7B's unless others are given; the weights are noise.
//!
//! On an H200 with 4096 keys of f16: q4_k 3.23 ms a token (one by one 3.39, floor 0.90), q8_0 4.14 (4.31, 1.57), bf16 4.96 (5.08, 2.85).
//!
//!     cargo run --release --example stack -- --device cuda --weights q4_k --keys 4096

use std::time::{Duration, Instant};

use clap::Parser;
use tesela::{DType, Device, Error, Op, Result, Runtime, Tensor, quant};

#[derive(Parser)]
struct Args {
    /// The device's id, or its backend's name; the fastest unless told.
    #[arg(long)]
    device: Option<String>,
    /// The weights' format.
    #[arg(long, default_value = "q4_k")]
    weights: String,
    /// The cache's.
    #[arg(long, default_value = "f16")]
    cache: String,
    /// Tokens that the cache holds.
    #[arg(long, default_value_t = 4096)]
    keys: usize,
    #[arg(long, default_value_t = 32)]
    layers: usize,
    #[arg(long, default_value_t = 4096)]
    width: usize,
    /// The feed-forward part's width.
    #[arg(long, default_value_t = 11008)]
    hidden: usize,
    #[arg(long, default_value_t = 32)]
    heads: usize,
    #[arg(long, default_value_t = 8)]
    kv_heads: usize,
    #[arg(long, default_value_t = 128)]
    head: usize,
    /// How often the token is run.
    #[arg(long, default_value_t = 50)]
    repeat: u32,
}

/// An operation with its tensors in launch order.
type Step = (Op, Vec<Tensor>);

/// The operation `text` followed by `name=spec` of the tensors.
fn step(text: &str, named: &[(&str, &Tensor)]) -> Result<Step> {
    let (name, fields) = text.split_once(' ').unwrap_or((text, ""));
    let specs: Vec<String> = named.iter().map(|(name, t)| format!("{name}={}", t.spec())).collect();
    let op: Op = format!("{name} {} {fields}", specs.join(" ")).parse()?;
    let operands = op.operands();
    let tensors = operands.iter().filter_map(|o| named.iter().find(|n| n.0 == o.name)).map(|n| n.1.clone()).collect();
    Ok((op, tensors))
}

struct Stack<'a> {
    rt: &'a Runtime,
    device: Device,
    args: &'a Args,
    /// A row of quantized noise, long enough for any.
    noise: Vec<u8>,
    dtype: DType,
    bytes: usize,
}

impl Stack<'_> {
    fn weight(&mut self, rows: usize, columns: usize) -> Result<Tensor> {
        let row = self.dtype.bytes(columns).ok_or_else(|| Error::invalid(columns, "no whole blocks of this format"))?;
        self.bytes += rows * row;
        self.rt.weight_on(&self.device, self.dtype, &[rows, columns], &self.noise[..row].repeat(rows))
    }

    fn zeros(&self, shape: &[usize]) -> Result<Tensor> {
        self.rt.zeros_on(&self.device, DType::BF16, shape)
    }

    fn steps(&mut self) -> Result<Vec<Step>> {
        let &Args { layers, width, hidden, heads, kv_heads, head, keys, .. } = self.args;
        let [residual, delta, normed, joined] = [(); 4].map(|()| self.zeros(&[1, width]));
        let (residual, delta, normed, joined) = (residual?, delta?, normed?, joined?);
        let (qkv, middle) = (self.zeros(&[1, (heads + 2 * kv_heads) * head])?, self.zeros(&[1, hidden])?);
        let part =
            |first: usize, count: usize| qkv.slice(1, first * head..(first + count) * head)?.reshape(&[1, count, head]);
        let (q, k, v) = (part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?);
        let ones = self.rt.from_f32_on(&self.device, &[width], &vec![1.0; width])?;
        let [position, length] = [keys as i32 - 1, keys as i32].map(|n| self.rt.from_i32_on(&self.device, &[1], &[n]));
        let (position, length) = (position?, length?);
        let cache: DType = self.args.cache.parse()?;
        let mut steps = Vec::new();
        let norm = |steps: &mut Vec<Step>| {
            let named =
                [("x", &delta), ("residual", &residual), ("sum", &residual), ("weight", &ones), ("out", &normed)];
            step("norm", &named).map(|s| steps.push(s))
        };
        for _ in 0..layers {
            let [keys_cache, values_cache] =
                [(); 2].map(|()| self.rt.zeros_on(&self.device, cache, &[keys, kv_heads, head]));
            let (keys_cache, values_cache) = (keys_cache?, values_cache?);
            let batched = |t: &Tensor| t.reshape(&[1, keys, kv_heads, head]);
            self.bytes += 2 * cache.bytes(keys * kv_heads * head).unwrap_or(0);
            norm(&mut steps)?;
            steps.push(step(
                "matmul numerics=fast",
                &[("x", &normed), ("w", &self.weight(qkv.shape()[1], width)?), ("out", &qkv)],
            )?);
            steps.push(step("rope", &[("x", &q), ("positions", &position)])?);
            steps.push(step(
                "rope",
                &[("x", &k), ("positions", &position), ("cache", &keys_cache), ("slots", &position)],
            )?);
            steps.push(step("kv_append", &[("x", &v), ("slots", &position), ("cache", &values_cache)])?);
            let (q, out) = (q.reshape(&[1, 1, heads, head])?, joined.reshape(&[1, 1, heads, head])?);
            let (k, v) = (batched(&keys_cache)?, batched(&values_cache)?);
            steps.push(step(
                "attention numerics=fast",
                &[("q", &q), ("k", &k), ("v", &v), ("out", &out), ("kv_len", &length)],
            )?);
            steps.push(step(
                "matmul numerics=fast",
                &[("x", &joined), ("w", &self.weight(width, heads * head)?), ("out", &delta)],
            )?);
            norm(&mut steps)?;
            let (gate, up) = (self.weight(hidden, width)?, self.weight(hidden, width)?);
            steps.push(step(
                "matmul act=silu numerics=fast",
                &[("x", &normed), ("w", &gate), ("up", &up), ("out", &middle)],
            )?);
            steps.push(step(
                "matmul numerics=fast",
                &[("x", &middle), ("w", &self.weight(width, hidden)?), ("out", &delta)],
            )?);
        }
        Ok(steps)
    }
}

/// The median of a few rounds.
fn timed(device: &Device, repeat: u32, run: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
    run()?;
    let mut times = Vec::new();
    for _ in 0..5 {
        device.sync()?;
        let start = Instant::now();
        (0..repeat).try_for_each(|_| run())?;
        device.sync()?;
        times.push(start.elapsed() / repeat);
    }
    times.sort();
    Ok(times[times.len() / 2])
}

/// Bytes that the device copies in a second, read and written both counted.
fn copy_rate(rt: &Runtime, device: &Device) -> Result<f64> {
    let elements = 64 << 20;
    let [from, to] = [(); 2].map(|()| rt.zeros_on(device, DType::F32, &[elements]));
    let (op, tensors) = step("convert", &[("x", &from?), ("out", &to?)])?;
    let time = timed(device, 5, &mut || rt.run(&op, &tensors.iter().collect::<Vec<_>>()))?;
    Ok((2 * 4 * elements) as f64 / time.as_secs_f64())
}

fn main() -> Result<()> {
    let args = Args::parse();
    let rt = Runtime::new()?;
    let device = args.device.as_deref().map_or_else(|| Ok(rt.default_device().clone()), |name| rt.device(name))?;
    let dtype: DType = args.weights.parse()?;
    let most = args.width.max(args.hidden).max(args.heads * args.head);
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..most).map(|_| random() * 0.1).collect();
    let mut noise = vec![0; dtype.bytes(most).ok_or_else(|| Error::invalid(most, "no whole blocks of this format"))?];
    quant::encode(dtype, &values, &mut noise)?;
    let mut stack = Stack { rt: &rt, device: device.clone(), args: &args, noise, dtype, bytes: 0 };
    let steps = stack.steps()?;
    let bytes = stack.bytes as f64;

    let lists: Vec<(&Op, Vec<&Tensor>)> = steps.iter().map(|(op, tensors)| (op, tensors.iter().collect())).collect();
    let one_by_one = timed(&device, args.repeat, &mut || lists.iter().try_for_each(|(op, t)| rt.run(op, t)))?;
    let borrowed: Vec<(&Op, &[&Tensor])> = lists.iter().map(|(op, t)| (*op, t.as_slice())).collect();
    let recording = rt.record(&borrowed)?;
    let recorded = timed(&device, args.repeat, &mut || recording.run())?;
    let rate = copy_rate(&rt, &device)?;

    println!("{}: {} layers, {} weights, {} keys of {}", device, args.layers, dtype, args.keys, args.cache);
    println!("{} operations read {:.2} GB; a copy moves {:.0} GB/s", recording.len(), bytes * 1e-9, rate * 1e-9);
    let floor = bytes / rate;
    for (name, time) in
        [("floor", floor), ("one by one", one_by_one.as_secs_f64()), ("recorded", recorded.as_secs_f64())]
    {
        println!("{name:12} {:9.3} ms  {:6.1} tokens/s  {:.2} of the floor", time * 1e3, 1.0 / time, time / floor);
    }
    for placed in rt.report().iter().filter(|p| p.launches > 1) {
        println!("  {:10} {} x {}", placed.op, placed.kernel, placed.launches);
    }
    Ok(())
}
