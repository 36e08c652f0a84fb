//! Which operations at which sizes: those of the models that the crate is for.

use crate::op::{Op, words};

words! {
    /// A list of operations to measure.
    Suite {
        /// A few of everything, under a minute on two cores.
        Quick = "quick",
        /// Matrix products of the models, prompts of 1 to 2048 tokens, dense and quantized, and their experts.
        Models = "models",
        /// Square matrix products.
        Square = "square",
        /// What one decoded token runs through.
        Decode = "decode",
        /// Attention of the models, prefill and decode.
        Attention = "attention",
        /// State-space layers of the hybrids.
        Ssm = "ssm",
        /// What takes a GPU milliseconds and a processor minutes: products of the models and attention, all in 16 bits, and quantized weights.
        Large = "large",
        /// What lies between the products, mostly on 512 rows of 4096 numbers: norms, softmax, functions, rope, top-k, copies.
        Between = "between",
    }
}

/// `(k, n)` of the models' weights, `[n, k]` as files store them.
const WEIGHTS: &[(usize, usize)] = &[
    (4096, 6144),   // q|k|v: Granite 8B, Salamandra-7B, Latxa-8B, H-Small
    (4096, 4096),   // attention output: the same
    (4096, 25600),  // gate|up: Granite 8B
    (12800, 4096),  // down: Granite 8B
    (4096, 22016),  // gate|up: Salamandra-7B, Latxa-7b
    (11008, 4096),  // down: Salamandra-7B
    (4096, 256000), // logits: Salamandra-7B
    (2048, 16384),  // gate|up: Granite 2B, H-Micro
    (8192, 2048),   // down: Granite 2B, H-Micro
    (2048, 8512),   // ssm in: H-Micro
    (1536, 6448),   // ssm in: H-Tiny, H-1B
    (3072, 1536),   // ssm out: H-Tiny, H-1B
    (4096, 16768),  // ssm in: H-Small
    (8192, 4096),   // ssm out: H-Small
    (5440, 2048),   // down: Salamandra-2B; k only fits blocks of 32
    (2048, 49155),  // logits: Granite 2B; odd
    (8192, 10240),  // q|k|v: ALIA-40b, Latxa-70B
    (8192, 49152),  // gate|up: ALIA-40b
    (24576, 8192),  // down: ALIA-40b
    (384, 1536),    // MiniLM, Granite Embedding 30M and 107M
    (768, 3072),    // Granite Embedding 125M and 278M
    (1152, 4304),   // SigLIP
];

/// `(experts, top_k, hidden, gate|up, ffn)` of the mixtures: H-Tiny, H-Small, Granite 1B-A400M, 3B-A800M.
const EXPERTS: &[(usize, usize, usize, usize, usize)] =
    &[(64, 6, 1536, 1024, 512), (72, 10, 4096, 1536, 768), (32, 8, 1024, 1024, 512), (40, 8, 1536, 1024, 512)];

/// `(heads, kv_heads, head dimension)` of the decoders: Granite 8B, Granite 2B, Granite Micro, H-Tiny, ALIA-40b, Salamandra-2B.
const HEADS: &[(usize, usize, usize)] =
    &[(32, 8, 128), (32, 8, 64), (40, 8, 64), (12, 4, 128), (64, 8, 128), (16, 16, 128)];

/// `(heads, channels of the convolution)` of the Mamba-2 layers, head dimension 64 and state 128: H-Tiny, H-Micro, H-Small.
const SSM: &[(usize, usize)] = &[(48, 3328), (64, 4352), (128, 8448)];

/// The suite's operations.
pub fn ops(suite: Suite) -> Vec<Op> {
    let text = match suite {
        Suite::Quick => quick(),
        Suite::Square => square(),
        Suite::Decode => WEIGHTS.iter().flat_map(|&(k, n)| products(&[1], k, n)).chain(around(1)).collect(),
        Suite::Models => {
            let products = WEIGHTS.iter().flat_map(|&(k, n)| {
                let m: &[usize] = if n > 100_000 { &[1, 8, 32] } else { &[1, 8, 32, 128, 512, 2048] };
                products(m, k, n)
            });
            products.chain(experts()).chain(around(512)).collect()
        }
        Suite::Attention => attention(),
        Suite::Ssm => ssm(&[1, 512, 2048]),
        Suite::Large => large(),
        Suite::Between => between(),
    };
    let legal = |t: &String| t.parse::<Op>().ok().filter(|op| op.validate().is_ok());
    text.iter().filter_map(legal).collect()
}

fn product(m: usize, k: usize, n: usize, w: &str) -> String {
    let x = if w == "bf16" || w == "f16" { w } else { "f32" };
    format!("matmul x={x}:{m}x{k} w={w}:{n}x{k} out=f32:{m}x{n}")
}

/// Dense, and quantized with activations of 8 bits allowed. Formats whose blocks do not fit fall out.
fn products(rows: &[usize], k: usize, n: usize) -> Vec<String> {
    let of = |&m: &usize| {
        let dense = ["bf16"].map(|w| product(m, k, n, w));
        let quantized = ["q8_0", "q4_0", "q4_k", "q6_k"].map(|w| product(m, k, n, w) + " numerics=fast");
        dense.into_iter().chain(quantized)
    };
    rows.iter().flat_map(of).collect()
}

fn square() -> Vec<String> {
    let of = |n: &usize| ["f32", "bf16", "f16"].map(|w| product(*n, *n, *n, w));
    [256, 512, 1024, 2048, 4096].iter().flat_map(of).collect()
}

/// The most telling first.
fn large() -> Vec<String> {
    let half = |m: usize, k: usize, n: usize| format!("matmul x=bf16:{m}x{k} w=bf16:{n}x{k} out=bf16:{m}x{n}");
    let prefill = |batch: usize, tokens: usize, (heads, kv_heads, d): (usize, usize, usize), rest: &str| {
        let (q, kv) = (format!("bf16:{batch}x{tokens}x{heads}x{d}"), format!("bf16:{batch}x{tokens}x{kv_heads}x{d}"));
        format!("attention q={q} k={kv} v={kv} out={q} numerics=fast{rest}")
    };
    let decode = |keys: usize, cache: &str| attend(1, 1, keys, (32, 8, 128), cache, "");
    let squares = [4096, 8192].map(|n| half(n, n, n));
    let prompts = [(1, 16384), (2, 8192), (4, 4096), (8, 2048)];
    let causal = prompts.iter().map(|&(batch, tokens)| prefill(batch, tokens, (32, 8, 128), " causal=true"));
    let other = [((32, 8, 128), ""), ((16, 16, 128), " causal=true"), ((32, 8, 64), " causal=true")];
    let other = other.iter().map(|&(heads, rest)| prefill(2, 8192, heads, rest));
    let caches = ["bf16", "f16", "q8_0"].into_iter().flat_map(|t| [8192, 131_072].map(|keys| decode(keys, t)));
    let streamed = [(4096, 25600), (4096, 4096), (12800, 4096), (8192, 10240), (2048, 16384)];
    let thin = streamed.into_iter().flat_map(|(k, n)| {
        let dense = [1, 8].map(|m| half(m, k, n));
        let quantized = |m: usize| {
            ["q4_k", "q8_0"].map(|w| format!("matmul x=bf16:{m}x{k} w={w}:{n}x{k} out=bf16:{m}x{n} numerics=fast"))
        };
        dense.into_iter().chain([1, 8, 16, 128].into_iter().flat_map(quantized)).collect::<Vec<_>>()
    });
    let models = WEIGHTS.iter().filter(|w| w.1 < 100_000);
    let models = [512, 2048, 128].into_iter().flat_map(|m| models.clone().map(move |&(k, n)| half(m, k, n)));
    squares.into_iter().chain(causal).chain(other).chain(caches).chain(thin).chain(models).collect()
}

fn experts() -> Vec<String> {
    let of = |&(experts, top, hidden, gate_up, ffn): &(usize, usize, usize, usize, usize)| {
        [32, 512, 2048].into_iter().flat_map(move |tokens| {
            [(hidden, gate_up), (ffn, hidden)].map(|(k, n)| {
                let rows = tokens * top;
                format!(
                    "grouped_matmul x=bf16:{rows}x{k} w=bf16:{experts}x{n}x{k} offsets=i32:{} out=f32:{rows}x{n}",
                    experts + 1
                )
            })
        })
    };
    EXPERTS.iter().flat_map(of).collect()
}

/// What lies between the products of a layer of Granite 8B.
fn around(rows: usize) -> Vec<String> {
    let (hidden, ffn, heads, d) = (4096, 12800, 40, 128);
    vec![
        format!("norm x=f32:{rows}x{hidden} out=f32:{rows}x{hidden} weight=f32:{hidden}"),
        format!(
            "norm x=f32:{rows}x{hidden} out=f32:{rows}x{hidden} weight=f32:{hidden} residual=f32:{rows}x{hidden} sum=f32:{rows}x{hidden} factor=0.22"
        ),
        format!("rope x=f32:{rows}x{heads}x{d} positions=i32:{rows}"),
        format!("kv_append x=f32:{rows}x8x{d} slots=i32:{rows} cache=f16:4096x8x{d}"),
        format!("elementwise a=f32:{rows}x{ffn} out=f32:{rows}x{ffn} b=f32:{rows}x{ffn} function=silu-mul"),
        format!("softmax x=f32:{rows}x{hidden} out=f32:{rows}x{hidden}"),
        format!("top_k x=f32:{rows}x64 values=f32:{rows}x6 indices=i32:{rows}x6 softmax=true"),
        format!("gather table=q8_0:49152x{hidden} index=i32:{rows} out=f32:{rows}x{hidden}"),
        format!("convert x=f32:{rows}x{hidden} out=q8_0:{rows}x{hidden}"),
        format!(
            "sample logits=f32:{}x49155 seed=i32:2 out=i32:{} temperature=0.8 top_k=40 top_p=0.95",
            rows.min(8),
            rows.min(8)
        ),
    ]
}

fn attend(
    batch: usize,
    q: usize,
    kv: usize,
    (heads, kv_heads, d): (usize, usize, usize),
    kv_type: &str,
    rest: &str,
) -> String {
    let (cache, out) = (format!("{kv_type}:{batch}x{kv}x{kv_heads}x{d}"), format!("f32:{batch}x{q}x{heads}x{d}"));
    format!("attention q={out} k={cache} v={cache} out={out}{rest}")
}

fn attention() -> Vec<String> {
    let mut all = Vec::new();
    for &heads in HEADS {
        all.extend([512, 2048].map(|q| attend(1, q, q, heads, "f16", " causal=true")));
        for kv in [1024, 8192] {
            all.extend(["f16", "q8_0"].map(|t| attend(1, 1, kv, heads, t, "")));
        }
    }
    all.push(attend(1, 1, 131_072, (32, 8, 128), "f16", ""));
    all.push(attend(32, 128, 128, (12, 12, 32), "f32", " key_mask=u8:32x128")); // MiniLM
    all.push(attend(1, 2048, 2048, (12, 12, 64), "f32", " window=128")); // ModernBERT
    all.push(attend(1, 729, 729, (16, 16, 72), "f32", "")); // SigLIP
    // MoLFormer
    let (qkv, features) = ("f32:64x202x12x64", 32);
    all.push(format!("linear_attention q={qkv} k={qkv} v={qkv} omega=f32:64x{features} out={qkv}"));
    all
}

fn ssm(lengths: &[usize]) -> Vec<String> {
    let scan = |t: usize, heads: usize| {
        let (x, bc) = (format!("f32:1x{t}x{heads}x64"), format!("f32:1x{t}x1x128"));
        format!(
            "ssm_scan x={x} dt=f32:1x{t}x{heads} a=f32:{heads} b={bc} c={bc} out={x} d=f32:{heads} dt_bias=f32:{heads} state=f32:1x{heads}x64x128 softplus=true"
        )
    };
    let conv = |t: usize, channels: usize| {
        let x = format!("f32:1x{t}x{channels}");
        format!("conv1d x={x} w=f32:{channels}x4 out={x} bias=f32:{channels} state=f32:1x3x{channels} act=silu")
    };
    let of = |&t: &usize| SSM.iter().flat_map(move |&(heads, channels)| [scan(t, heads), conv(t, channels)]);
    let mut all: Vec<String> = lengths.iter().flat_map(of).collect();
    // Mamba-1: SMI-SSED
    let (x, state) = ("f32:1x202x1536", "f32:1x1536x16");
    all.push(format!("selective_scan x={x} dt={x} a=f32:1536x16 b=f32:1x202x16 c=f32:1x202x16 out={x} d=f32:1536 z={x} state={state} softplus=true"));
    all
}

fn between() -> Vec<String> {
    let x = "f32:512x4096";
    let unary = ["gelu-tanh", "gelu-erf", "silu"].map(|f| format!("elementwise a={x} out={x} function={f}"));
    let binary = ["add", "silu-mul"].map(|f| format!("elementwise a={x} out={x} b={x} function={f}"));
    let ropes = ["adjacent", "half"].map(|style| format!("rope x=f32:512x32x128 positions=i32:512 style={style}"));
    let reductions = ["sum", "arg-max", "log-sum-exp"].map(|kind| {
        let out = if kind == "arg-max" { "i32" } else { "f32" };
        format!("reduce x={x} out={out}:512x1 kind={kind}")
    });
    let rest = [
        format!("norm x={x} out={x} weight=f32:4096"),
        format!("norm x={x} out={x} weight=f32:4096 bias=f32:4096 kind=layer"),
        format!("norm x={x} out={x} weight=f32:4096 residual={x} sum={x} factor=0.22"),
        format!("norm x={x} out={x} weight=f32:4096 gate={x}"),
        format!("softmax x={x} out={x}"),
        format!("reduce x={x} out={x} kind=l2-normalize"),
        format!("top_k x={x} values=f32:512x8 indices=i32:512x8"),
        "top_k x=f32:1x131072 values=f32:1x40 indices=i32:1x40".into(),
        "sample logits=f32:1x131072 seed=i32:2 out=i32:1 top_k=40 top_p=0.95".into(),
        "kv_append x=f32:512x8x128 slots=i32:512 cache=f16:4096x8x128".into(),
        "kv_append x=f32:512x8x128 slots=i32:512 cache=q8_0:4096x8x128".into(),
        format!("convert x={x} out=bf16:512x4096"),
        "convert x=f32:2048x2048@1x2048 out=f32:2048x2048".into(),
        "convert x=q4_k:4096x4096 out=bf16:4096x4096".into(),
        "scatter x=f32:4096x1024 index=i32:4096 out=f32:512x1024 weight=f32:4096".into(),
        "segment x=f32:65536x64 segments=i32:65536 out=f32:4096x64".into(),
        "selective_scan x=f32:1x256x4096 dt=f32:1x256x4096 a=f32:4096x16 b=f32:1x256x16 c=f32:1x256x16 \
         out=f32:1x256x4096 state=f32:1x4096x16 softplus=true"
            .into(),
        "conv x=f32:1x3x224x224 w=f32:768x3x16x16 out=f32:1x768x14x14 stride=16".into(),
        "conv x=f32:1x64x56x56 w=f32:64x64x3x3 out=f32:1x64x56x56 pad=1".into(),
    ];
    [&unary[..], &binary, &ropes, &reductions, &rest].concat()
}

fn quick() -> Vec<String> {
    let mut all = vec![
        product(512, 512, 512, "f32"),
        product(256, 1024, 1024, "bf16"),
        product(1, 4096, 4096, "f32"),
        product(1, 4096, 4096, "bf16"),
    ];
    for w in ["q8_0", "q4_0", "q4_k", "q6_k"] {
        all.push(product(1, 4096, 4096, w) + " numerics=fast");
    }
    all.push(product(32, 2048, 2048, "q4_k") + " numerics=fast");
    all.push("grouped_matmul x=f32:96x512 w=f32:16x512x512 offsets=i32:17 out=f32:96x512".into());
    all.push(attend(1, 128, 128, (12, 4, 128), "f16", " causal=true"));
    all.push(attend(1, 1, 1024, (32, 8, 128), "f16", ""));
    all.extend(around(16));
    all.extend([1, 64].into_iter().flat_map(|t| ssm(&[t]).into_iter().take(2)));
    all.push("reduce x=f32:128x4096 out=f32:128x1 kind=mean".into());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every text is an operation, save the formats whose blocks do not fit.
    #[test]
    fn suites_hold_what_they_list() {
        for (suite, listed) in [
            (Suite::Quick, quick()),
            (Suite::Attention, attention()),
            (Suite::Ssm, ssm(&[1, 512, 2048])),
            (Suite::Square, square()),
            (Suite::Between, between()),
            (Suite::Large, large()),
        ] {
            let wrong: Vec<_> =
                listed.iter().filter_map(|t| t.parse::<Op>().and_then(|op| op.validate()).err()).collect();
            assert!(wrong.is_empty(), "{suite}: {wrong:#?}");
            assert_eq!(ops(suite).len(), listed.len());
        }
        assert!(around(1).iter().chain(&experts()).all(|t| t.parse::<Op>().is_ok_and(|op| op.validate().is_ok())));
        let models = ops(Suite::Models);
        assert!(models.len() > 500 && models.iter().any(|op| op.to_string().contains("q4_k")));
        assert!(ops(Suite::Decode).len() > 90);
    }
}
