//! Which operations: those of the models, at the sizes of their layers.

use clap::ValueEnum;
use tesela::{
    Op,
    bench::{Suite, ops},
};

/// A group of operations.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum What {
    /// Products of f32, bf16 and 8-bit integers.
    Dense,
    /// Products of f32 and quantized weights.
    Quantized,
    /// Prompts and single tokens.
    Attention,
    /// Norms, softmax and functions.
    Between,
}

/// `(k, n)` of the weights that are enough for a quick look: square, wide, narrow and odd.
const QUICK: &[(usize, usize)] = &[(4096, 4096), (2048, 16384), (8192, 2048), (1536, 6448)];

/// The groups' operations.
pub fn cases(what: &[What], quick: bool) -> Result<Vec<Op>, tesela::Error> {
    let texts = what.iter().flat_map(|w| match w {
        What::Dense => dense(quick),
        What::Quantized => quantized(quick),
        What::Attention => attention(quick),
        What::Between => between(),
    });
    texts.map(|t| t.parse()).collect()
}

/// `(k, n)` of the suite's products whose weights are small enough for a dozen libraries to hold several copies.
fn weights(quick: bool) -> Vec<(usize, usize)> {
    let mut all: Vec<(usize, usize)> = Vec::new();
    for op in ops(Suite::Models) {
        let Op::Matmul(a) = &op else { continue };
        let &[n, k] = a.w.shape() else { continue };
        if k * n <= 110 << 20 && !all.contains(&(k, n)) {
            all.push((k, n));
        }
    }
    if quick { QUICK.to_vec() } else { all }
}

fn dense(quick: bool) -> Vec<String> {
    let squares: &[usize] = if quick { &[256, 1024, 2048] } else { &[256, 512, 1024, 2048, 4096] };
    let mut shapes: Vec<(usize, usize, usize)> = squares.iter().map(|&n| (n, n, n)).collect();
    shapes.extend([(333, 777, 555), (7, 1000, 13), (8, 2048, 8192)]);
    let rows = [1, 8, 32, 128, 512];
    shapes.extend(weights(quick).into_iter().flat_map(|(k, n)| rows.map(|m| (m, k, n))));
    let types = [("f32", "f32", "f32"), ("bf16", "bf16", "bf16"), ("u8", "i8", "i32")];
    let text = |&(m, k, n): &(usize, usize, usize)| {
        types.map(|(x, w, out)| format!("matmul x={x}:{m}x{k} w={w}:{n}x{k} out={out}:{m}x{n}"))
    };
    shapes.iter().flat_map(text).collect()
}

fn quantized(quick: bool) -> Vec<String> {
    let formats: &[&str] = match quick {
        true => &["q8_0", "q4_k", "q6_k"],
        false => &[
            "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq1_s", "iq1_m",
            "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs", "tq1_0", "tq2_0", "mxfp4",
        ],
    };
    let text = |m: usize, k: usize, n: usize, w: &str| {
        format!("matmul x=f32:{m}x{k} w={w}:{n}x{k} out=f32:{m}x{n} numerics=fast")
    };
    let square = formats.iter().flat_map(|w| [1, 8, 32, 512].map(|m| text(m, 4096, 4096, w)));
    let models = weights(quick).into_iter().filter(|&(k, n)| (k, n) != (4096, 4096) && !quick && k % 256 == 0);
    let common = ["q8_0", "q4_0", "q4_k", "q6_k"];
    let models = models.flat_map(|(k, n)| common.into_iter().flat_map(move |w| [1, 8, 512].map(|m| text(m, k, n, w))));
    square.chain(models).collect()
}

fn attention(quick: bool) -> Vec<String> {
    let text = |q: usize, kv: usize, d: usize, t: &str, causal: &str| {
        let queries = if t == "bf16" { "bf16" } else { "f32" };
        let (cache, out) = (format!("{t}:1x{kv}x8x{d}"), format!("{queries}:1x{q}x32x{d}"));
        format!("attention q={out} k={cache} v={cache} out={out}{causal}")
    };
    let types: &[&str] = if quick { &["f32", "f16"] } else { &["f32", "bf16", "f16", "q8_0"] };
    let lengths: &[usize] = if quick { &[512] } else { &[512, 2048] };
    let prompts = lengths.iter().flat_map(|&n| [64, 128].map(|d| (n, d)));
    let prompts = prompts.flat_map(|(n, d)| types.iter().map(move |t| text(n, n, d, t, " causal=true")));
    let tokens = [512, 4096, 16384].into_iter().take(if quick { 2 } else { 3 });
    let tokens = tokens.flat_map(|kv| types.iter().map(move |t| text(1, kv, 128, t, "")));
    prompts.chain(tokens).collect()
}

fn between() -> Vec<String> {
    let x = "f32:512x4096";
    let mut all = vec![
        format!("norm x={x} out={x} weight=f32:4096"),
        format!("norm x={x} out={x} weight=f32:4096 bias=f32:4096 kind=layer"),
        format!("softmax x={x} out={x}"),
    ];
    all.extend(["add", "silu-mul"].map(|f| format!("elementwise a={x} out={x} b={x} function={f}")));
    all.extend(["gelu-tanh", "gelu-erf", "silu"].map(|f| format!("elementwise a={x} out={x} function={f}")));
    all
}
