//! Which tensor of a file gets which type: the mixes of llama.cpp's quantizer, by the same names and numbers. A mix has
//! a type for most tensors, and gives more bits to those whose errors cost most: the output, attention's values, and
//! some layers' `ffn_down`.

use std::{fmt, str::FromStr};

use super::Gguf;
use crate::{
    dtype::DType,
    error::{Error, Result},
};

/// What a whole file is quantized to: `Q4_K_M`, `Q8_0`, ... Parses from its name, in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix(Kind);

macro_rules! mixes {
    ($($name:ident = $id:literal, $base:ident;)*) => {
        #[allow(non_camel_case_types, reason = "the mixes' own names")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Kind { $($name,)* }

        impl Mix {
            /// Every mix.
            pub const ALL: &'static [Mix] = &[$(Mix(Kind::$name),)*];

            /// The name, as in the names of files.
            pub const fn name(self) -> &'static str {
                match self.0 { $(Kind::$name => stringify!($name),)* }
            }

            /// What `general.file_type` says of such a file.
            pub const fn file_type(self) -> u32 {
                match self.0 { $(Kind::$name => $id,)* }
            }

            /// The type of most tensors.
            pub const fn base(self) -> DType {
                match self.0 { $(Kind::$name => DType::$base,)* }
            }
        }
    };
}
mixes! {
    F32 = 0, F32; F16 = 1, F16; BF16 = 32, BF16;
    Q4_0 = 2, Q4_0; Q4_1 = 3, Q4_1; Q5_0 = 8, Q5_0; Q5_1 = 9, Q5_1; Q8_0 = 7, Q8_0;
    Q2_K = 10, Q2_K; Q2_K_S = 21, Q2_K; Q3_K_S = 11, Q3_K; Q3_K_M = 12, Q3_K; Q3_K_L = 13, Q3_K;
    Q4_K_S = 14, Q4_K; Q4_K_M = 15, Q4_K; Q5_K_S = 16, Q5_K; Q5_K_M = 17, Q5_K; Q6_K = 18, Q6_K;
    IQ1_S = 24, IQ1_S; IQ1_M = 31, IQ1_M; IQ2_XXS = 19, IQ2_XXS; IQ2_XS = 20, IQ2_XS; IQ2_S = 28, IQ2_XS; IQ2_M = 29, IQ2_S;
    IQ3_XXS = 23, IQ3_XXS; IQ3_XS = 22, IQ3_S; IQ3_S = 26, IQ3_S; IQ3_M = 27, IQ3_S;
    IQ4_NL = 25, IQ4_NL; IQ4_XS = 30, IQ4_XS; TQ1_0 = 36, TQ1_0; TQ2_0 = 37, TQ2_0;
    MXFP4_MOE = 38, MXFP4; NVFP4 = 39, NVFP4; Q1_0 = 40, Q1_0;
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mix {
    type Err = Error;

    fn from_str(s: &str) -> Result<Mix> {
        let upper = s.to_uppercase();
        let name = match upper.as_str() {
            "Q3_K" => "Q3_K_M",
            "Q4_K" => "Q4_K_M",
            "Q5_K" => "Q5_K_M",
            "MXFP4" => "MXFP4_MOE",
            other => other,
        };
        let known = || Mix::ALL.iter().map(|m| m.name()).collect::<Vec<_>>().join(" ");
        let found = Mix::ALL.iter().copied().find(|m| m.name() == name);
        found.ok_or_else(|| Error::invalid(s, format_args!("no such type; known: {}", known())))
    }
}

/// What a tensor is for.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Output,
    Embedding,
    Value,
    Key,
    Query,
    AttentionOutput,
    Down,
    Gate,
    Up,
    Other,
}

impl Role {
    fn of(name: &str) -> Role {
        let has = |part: &str| name.contains(part);
        match name {
            "output.weight" => Role::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Role::Embedding,
            _ if has("attn_qkv.weight") || has("attn_kv_b.weight") || has("attn_v.weight") => Role::Value,
            _ if has("attn_k.weight") => Role::Key,
            _ if has("attn_q.weight") => Role::Query,
            _ if has("attn_output.weight") => Role::AttentionOutput,
            _ if has("ffn_up") => Role::Up,
            _ if has("ffn_gate") => Role::Gate,
            _ if has("ffn_down") => Role::Down,
            _ => Role::Other,
        }
    }
}

/// Small tensors whose errors cost more than their bytes: parts of the names of those left as they are.
const KEPT: &[&str] = &[
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// True for the weights of products: matrices, and stacks of them.
fn is_quantized(name: &str, shape: &[usize]) -> bool {
    let dims = shape.len() - shape.iter().take_while(|&&n| n == 1).count();
    let kept = ["position_embd.weight", "token_types.weight"].contains(&name) || KEPT.iter().any(|k| name.contains(k));
    dims >= 2 && name.ends_with("weight") && !kept
}

/// The number in `blk.N.`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// What the choice depends on, beside the tensor.
struct Model {
    falcon: bool,
    experts: usize,
    /// Four query heads or more share a head of keys and values.
    grouped: bool,
    /// So large that values get more bits.
    large: bool,
    layers: usize,
    values: usize,
    /// The embeddings are the output too.
    tied: bool,
    importance: bool,
}

/// A third of the layers, those that matter most: the first and the last eighth, and every third between.
fn more(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

impl Mix {
    /// The type of each of the file's tensors, in its order. `importance` says that there are importance weights: some
    /// rules differ. `Unsupported` where a tensor's type is not one of ours.
    pub fn dtypes(self, file: &Gguf, importance: bool) -> Result<Vec<DType>> {
        let names: Vec<&str> = file.names().collect();
        let architecture: &str = file.find("general.architecture")?.unwrap_or_default();
        let number = |key: &str| -> Result<usize> {
            // Some are arrays, one number a layer; the first one counts.
            let key = format!("{architecture}.{key}");
            match file.find::<usize>(&key) {
                Ok(v) => Ok(v.unwrap_or(0)),
                Err(e) => {
                    let array: Option<super::Array<'_>> = file.find(&key).map_err(|_| e)?;
                    Ok(array.and_then(|a| a.collect::<usize>()?.first().copied()).unwrap_or(0))
                }
            }
        };
        let (heads, shared, layers) =
            (number("attention.head_count")?, number("attention.head_count_kv")?, number("block_count")?);
        let shared = if shared == 0 { heads } else { shared };
        let model = Model {
            falcon: architecture == "falcon",
            experts: number("expert_count")?,
            grouped: shared > 0 && heads / shared >= 4,
            large: layers == 80 && shared != heads && ["llama", "deci", "qwen2"].contains(&architecture),
            layers,
            values: names.iter().filter(|n| Role::of(n) == Role::Value).count(),
            tied: !names.contains(&"output.weight"),
            importance,
        };
        // Layers are counted by their tensors of a role, in the order of layers and names.
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.sort_by_key(|&i| (layer(names[i]).map_or(0, |l| l + 1), names[i]));
        let mut dtypes = vec![DType::F32; names.len()];
        let [mut values, mut downs, mut gates, mut ups, mut others] = [0; 5];
        for i in order {
            let (name, spec) = (names[i], file.tensor(names[i])?.spec);
            dtypes[i] = spec.dtype();
            if !is_quantized(name, spec.shape()) {
                continue;
            }
            dtypes[i] = self.base();
            if !self.base().is_quantized() {
                continue;
            }
            let role = Role::of(name);
            let counter = match role {
                Role::Value => &mut values,
                Role::Down => &mut downs,
                Role::Up => &mut ups,
                Role::Gate => &mut gates,
                _ => &mut others,
            };
            let counted = *counter;
            *counter += 1;
            let at = if model.experts > 1 { layer(name).unwrap_or(counted) } else { counted };
            let stacked = spec.rank() > 2 && spec.dim(2) > 1;
            let width = spec.dim(0);
            dtypes[i] = fitting(self.choose(&model, role, at, counted, width, stacked), width);
        }
        Ok(dtypes)
    }

    /// The rule. `at`: the tensor's layer; `counted`: tensors of its role before it.
    fn choose(self, m: &Model, role: Role, at: usize, counted: usize, width: usize, stacked: bool) -> DType {
        use DType as D;
        use Kind::*;
        let kind = self.0;
        let low = matches!(kind, IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ2_M);
        let two = matches!(kind, IQ2_S | IQ2_M);
        if role == Role::Output || role == Role::Embedding && m.tied {
            return match kind {
                MXFP4_MOE => D::Q8_0,
                _ if m.falcon || !width.is_multiple_of(self.base().block().0) => D::Q8_0,
                IQ3_XXS => D::Q5_K,
                _ if low => D::Q5_K,
                _ if self.base() == D::Q8_0 => D::Q8_0,
                _ => D::Q6_K,
            };
        }
        match (kind, role) {
            (MXFP4_MOE, _) => {
                if stacked {
                    D::MXFP4
                } else {
                    D::Q8_0
                }
            }
            (_, Role::Embedding) => match kind {
                IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS => D::Q2_K,
                IQ2_S | IQ2_M | IQ3_XXS => D::IQ3_S,
                TQ1_0 | TQ2_0 => D::Q4_K,
                _ => self.base(),
            },
            (_, Role::Value) if low && (m.grouped || m.experts >= 4) => D::Q4_K,
            (_, Role::Value) if low => {
                if two {
                    D::IQ3_S
                } else {
                    D::Q2_K
                }
            }
            (_, Role::Key) if low && m.experts == 8 => D::Q4_K,
            (_, Role::Down) if low && counted < m.layers / 8 => {
                if two {
                    D::IQ3_S
                } else {
                    D::Q2_K
                }
            }
            (_, Role::AttentionOutput) if low && m.experts == 8 => D::Q5_K,
            (IQ1_S | IQ1_M, Role::AttentionOutput) => D::IQ2_XXS,
            (IQ2_S | IQ2_M, Role::AttentionOutput) => D::IQ3_S,
            _ if low => self.base(),
            (_, Role::Value | Role::Key) if m.experts == 8 => D::Q8_0,
            (_, Role::Value) => {
                let chosen = self.value(m, counted);
                if m.large && matches!(chosen, D::Q3_K | D::Q4_K) { D::Q5_K } else { chosen }
            }
            (IQ3_XS, Role::Key | Role::Query) => D::IQ3_XXS,
            (IQ3_XXS, Role::Key | Role::Query) => D::IQ2_S,
            (_, Role::Down) => self.down(m, at),
            (_, Role::AttentionOutput) if m.falcon => {
                if kind == Q3_K_L {
                    D::Q4_K
                } else {
                    self.base()
                }
            }
            (_, Role::AttentionOutput) if m.experts == 8 => match kind {
                Q2_K | Q3_K_S | Q3_K_M | Q4_K_S | Q4_K_M | IQ3_XXS | IQ3_XS | IQ3_S | IQ3_M | IQ4_NL | IQ4_XS => {
                    D::Q5_K
                }
                _ => self.base(),
            },
            (Q2_K, Role::AttentionOutput) => D::Q3_K,
            (IQ3_XXS, Role::AttentionOutput) => D::IQ3_S,
            (Q3_K_M | IQ3_M, Role::AttentionOutput) => D::Q4_K,
            (Q3_K_L, Role::AttentionOutput) => D::Q5_K,
            (IQ3_XS, Role::Gate | Role::Up) if (m.layers / 8..7 * m.layers / 8).contains(&at) => D::IQ3_XXS,
            _ => self.base(),
        }
    }

    /// Attention's values, the `i`-th of them.
    fn value(self, m: &Model, i: usize) -> DType {
        use DType as D;
        use Kind::*;
        match self.0 {
            Q2_K => {
                if m.grouped {
                    D::Q4_K
                } else {
                    D::Q3_K
                }
            }
            Q2_K_S if m.grouped => D::Q4_K,
            IQ3_XXS if m.grouped => D::Q4_K,
            IQ3_XXS if !m.importance => D::IQ3_S,
            IQ3_XS | IQ3_S if m.grouped => D::Q4_K,
            IQ3_M => D::Q4_K,
            Q3_K_M => {
                if i < 2 {
                    D::Q5_K
                } else {
                    D::Q4_K
                }
            }
            Q3_K_L => D::Q5_K,
            IQ4_NL | IQ4_XS if m.grouped => D::Q5_K,
            Q4_K_M | Q5_K_M if more(i, m.values) => D::Q6_K,
            Q4_K_S if i < 4 => D::Q5_K,
            _ => self.base(),
        }
    }

    /// `ffn_down` of a layer.
    fn down(self, m: &Model, layer: usize) -> DType {
        use DType as D;
        use Kind::*;
        let (n, first) = (m.layers, layer < m.layers / 8);
        match self.0 {
            Q2_K => D::Q3_K,
            Q2_K_S if first => D::Q4_K,
            IQ3_XXS if !m.importance => {
                if first {
                    D::Q4_K
                } else {
                    D::Q3_K
                }
            }
            Q3_K_M if layer < n / 16 => D::Q5_K,
            Q3_K_M => {
                if !m.falcon || more(layer, n) {
                    D::Q4_K
                } else {
                    D::Q3_K
                }
            }
            IQ3_M if first || m.experts == 8 && more(layer, n) => D::Q4_K,
            Q3_K_L => {
                if m.falcon {
                    D::Q4_K
                } else {
                    D::Q5_K
                }
            }
            Q4_K_M if m.falcon && layer < n / 16 => D::Q6_K,
            Q4_K_M if more(layer, n) => {
                if m.falcon {
                    D::Q5_K
                } else {
                    D::Q6_K
                }
            }
            IQ4_NL | IQ4_XS if first && !m.importance => D::Q5_K,
            Q5_K_M if more(layer, n) => D::Q6_K,
            Q4_K_S if first && !m.falcon => D::Q5_K,
            Q4_0 if first && m.importance => D::Q4_1,
            Q5_0 if first && m.importance => D::Q5_1,
            _ => self.base(),
        }
    }
}

/// `dtype`, or where rows of this width are not whole blocks of it the one that takes its place.
fn fitting(dtype: DType, width: usize) -> DType {
    use DType::*;
    let fits = |d: DType| d.bytes(width).is_some();
    let instead = match dtype {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_K | Q3_K | TQ1_0 | TQ2_0 | Q1_0 | NVFP4 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        _ => F16,
    };
    [dtype, instead].into_iter().find(|&d| fits(d)).unwrap_or(F16)
}
