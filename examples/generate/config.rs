//! What a model's file says of its shape.

use tesela::{
    Error, Result,
    gguf::{FromValue, Gguf},
    op::rope::RopeScaling,
};

/// A decoder's sizes and factors. Names as in the files' keys.
#[derive(Debug, Clone)]
pub struct Config {
    pub layers: usize,
    pub width: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head: usize,
    pub context: usize,
    pub eps: f32,
    pub rope: Rope,
    /// Multiplies the embeddings.
    pub embedding_scale: f32,
    /// Multiplies the scores; 0 stands for `1 / sqrt(head)`.
    pub attention_scale: f32,
    /// Multiplies what each half of a layer adds.
    pub residual_scale: f32,
    /// Divides the logits.
    pub logit_scale: f32,
}

/// How positions enter: see `tesela::op::rope`.
#[derive(Debug, Clone)]
pub struct Rope {
    pub dims: usize,
    pub theta: f32,
    pub scaling: RopeScaling,
    pub factor: f32,
    pub low: f32,
    pub high: f32,
    pub original: usize,
    pub attention: f32,
}

impl Config {
    /// Reads it from a file of the architectures `llama` or `granite`.
    pub fn load(file: &Gguf) -> Result<Config> {
        let architecture: &str = file.require("general.architecture")?;
        if !["llama", "granite"].contains(&architecture) {
            let why = format!("architecture {architecture}; this example runs llama and granite");
            return Err(Error::unsupported(file.path(), why));
        }
        let keys = Keys { file, architecture };
        let size = |key: &str| match keys.require(key)? {
            0 => Err(Error::file(file.path(), format_args!("is corrupt: {architecture}.{key} is 0"))),
            n => Ok(n),
        };
        let (width, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let head = keys.find("attention.key_length")?.unwrap_or(width / heads);
        let kv_heads = keys.find("attention.head_count_kv")?.unwrap_or(heads);
        let context = size("context_length")?;
        if head == 0 || kv_heads == 0 || heads % kv_heads != 0 {
            let why = format!("is corrupt: {heads} heads, {kv_heads} kv heads, {head} elements each");
            return Err(Error::file(file.path(), why));
        }
        Ok(Config {
            layers: size("block_count")?,
            width,
            hidden: size("feed_forward_length")?,
            heads,
            kv_heads,
            head,
            context,
            eps: keys.require("attention.layer_norm_rms_epsilon")?,
            rope: Rope::load(&keys, head, context)?,
            embedding_scale: keys.find("embedding_scale")?.unwrap_or(1.0),
            attention_scale: keys.find("attention.scale")?.unwrap_or(0.0),
            residual_scale: keys.find("residual_scale")?.unwrap_or(1.0),
            logit_scale: keys.find("logit_scale")?.unwrap_or(1.0),
        })
    }
}

impl Rope {
    fn load(keys: &Keys, head: usize, context: usize) -> Result<Rope> {
        let scaling = keys.find("rope.scaling.type")?.unwrap_or("none").parse()?;
        // The bands of llama3 come under keys of their own, or ready-made as factors in a tensor.
        let (low, high) = match scaling {
            RopeScaling::Yarn => ("rope.scaling.yarn_beta_slow", "rope.scaling.yarn_beta_fast"),
            _ => ("rope.scaling.low_freq_factor", "rope.scaling.high_freq_factor"),
        };
        let high_default = if scaling == RopeScaling::Yarn { 32.0 } else { 4.0 };
        Ok(Rope {
            dims: keys.find("rope.dimension_count")?.unwrap_or(head),
            theta: keys.find("rope.freq_base")?.unwrap_or(10000.0),
            scaling,
            factor: keys.find("rope.scaling.factor")?.unwrap_or(1.0),
            low: keys.find(low)?.unwrap_or(1.0),
            high: keys.find(high)?.unwrap_or(high_default),
            original: keys.find("rope.scaling.original_context_length")?.unwrap_or(context),
            attention: keys.find("rope.scaling.attn_factor")?.unwrap_or(0.0),
        })
    }
}

/// The keys of one architecture.
struct Keys<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn find<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>> {
        self.file.find(&format!("{}.{key}", self.architecture))
    }

    fn require<T: FromValue<'a>>(&self, key: &str) -> Result<T> {
        self.file.require(&format!("{}.{key}", self.architecture))
    }
}
