//! A decoder of the llama family, written with Tesela's public API as a model crate would write it.

use tesela::{
    DType, Error, Result, Runtime, Tensor,
    gguf::Gguf,
    op::{Activation, Numerics, rope::RopeStyle},
    runtime::ops::RopeCall,
};

use crate::config::Config;

/// A model's weights on a device.
pub struct Model {
    pub config: Config,
    runtime: Runtime,
    embedding: Tensor,
    rope_factors: Option<Tensor>,
    layers: Vec<Layer>,
    norm: Tensor,
    output: Tensor,
}

struct Layer {
    attention_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Model {
    /// Loads the weights: read in place from the mapped file where the device can, else packed or copied once.
    pub fn load(runtime: &Runtime, file: &Gguf) -> Result<Model> {
        let config = Config::load(file)?;
        if let Some(name) = file.names().find(|name| name.ends_with(".bias")) {
            return Err(Error::unsupported(file.path(), format_args!("{name}: this example adds no biases")));
        }
        let Config { width, hidden, heads, kv_heads, head, .. } = config;
        let (q_width, kv_width) = (heads.saturating_mul(head), kv_heads.saturating_mul(head));
        let weight = |name: &str, n: usize, k: usize| {
            let tensor = shaped(file, name, &[n, k])?;
            runtime.weight_adopted(tensor.spec.dtype(), &[n, k], file.bytes().clone(), tensor.range)
        };
        let vector = |name: &str, n: usize| {
            let tensor = shaped(file, name, &[n])?;
            runtime.tensor(tensor.spec.dtype(), &[n], tensor.bytes())
        };
        let vocabulary = file.tensor("token_embd.weight")?.spec.shape()[0];
        let embedding = weight("token_embd.weight", vocabulary, width)?;
        let output = match file.contains("output.weight") {
            true => weight("output.weight", vocabulary, width)?,
            false => embedding.clone(),
        };
        let rope_factors = match file.contains("rope_freqs.weight") {
            true => Some(vector("rope_freqs.weight", config.rope.dims / 2)?),
            false => None,
        };
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            layers.push(Layer {
                attention_norm: vector(&name("attn_norm"), width)?,
                q: weight(&name("attn_q"), q_width, width)?,
                k: weight(&name("attn_k"), kv_width, width)?,
                v: weight(&name("attn_v"), kv_width, width)?,
                o: weight(&name("attn_output"), width, q_width)?,
                norm: vector(&name("ffn_norm"), width)?,
                gate: weight(&name("ffn_gate"), hidden, width)?,
                up: weight(&name("ffn_up"), hidden, width)?,
                down: weight(&name("ffn_down"), width, hidden)?,
            });
        }
        let norm = vector("output_norm.weight", width)?;
        Ok(Model { runtime: runtime.clone(), embedding, rope_factors, layers, norm, output, config })
    }

    /// Number of ids.
    pub fn vocabulary(&self) -> usize {
        self.embedding.shape()[0]
    }

    /// The device the weights are on, as `backend (name)`.
    pub fn device(&self) -> String {
        self.embedding.device().info().to_string()
    }
}

/// A tensor of the file, which must have this shape.
fn shaped<'a>(file: &'a Gguf, name: &str, shape: &[usize]) -> Result<tesela::gguf::Tensor<'a>> {
    let tensor = file.tensor(name)?;
    if tensor.spec.shape() != shape {
        let why = format!("is corrupt: {name} is {:?}, and its other values ask for {shape:?}", tensor.spec.shape());
        return Err(Error::file(file.path(), why));
    }
    Ok(tensor)
}

/// One text in the making: its keys and values, and room for the next token's numbers.
pub struct Session<'m> {
    model: &'m Model,
    cache: Vec<(Tensor, Tensor)>, // k and v of each layer: [capacity, kv_heads, head]
    capacity: usize,
    length: usize,
    step: Batch,
    logits: Tensor,
    seed: Tensor,
}

impl<'m> Session<'m> {
    /// Room for a text of at most `capacity` tokens.
    pub fn new(model: &'m Model, capacity: usize) -> Result<Session<'m>> {
        let (rt, config) = (&model.runtime, &model.config);
        let dtype = if rt.numerics() == Numerics::Exact { DType::F32 } else { DType::F16 };
        let room = || rt.zeros(dtype, &[capacity, config.kv_heads, config.head]);
        Ok(Session {
            cache: (0..config.layers).map(|_| Ok((room()?, room()?))).collect::<Result<_>>()?,
            capacity,
            length: 0,
            step: Batch::new(model, 1)?,
            logits: rt.zeros(DType::F32, &[1, model.vocabulary()])?,
            seed: rt.zeros(DType::I32, &[2])?,
            model,
        })
    }

    /// Takes a prompt in one batch. Afterwards the logits of what follows are there.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<()> {
        let batch = Batch::new(self.model, ids.len())?;
        let bytes = |numbers: &mut dyn Iterator<Item = u32>| numbers.flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
        batch.ids.write(&bytes(&mut ids.iter().copied()))?;
        batch.positions.write(&bytes(&mut (self.length as u32..).take(ids.len())))?;
        self.forward(&batch, ids.len())?;
        self.length += ids.len();
        Ok(())
    }

    /// Draws the next token from the logits; at temperature 0 the likeliest.
    pub fn sample(&mut self, temperature: f32, seed: u64) -> Result<u32> {
        let seed = seed.wrapping_add((self.length as u64) << 32); // another one at each position
        self.seed.write(&seed.to_le_bytes())?;
        let draw = self.model.runtime.sample(&self.logits, &self.seed).temperature(temperature);
        draw.run_into(&self.step.ids)?;
        let mut id = [0; 4];
        self.step.ids.read_into(&mut id)?;
        Ok(u32::from_le_bytes(id))
    }

    /// Takes the token that was drawn last. Afterwards the logits of what follows are there.
    pub fn advance(&mut self) -> Result<()> {
        self.step.positions.write(&(self.length as u32).to_le_bytes())?;
        self.forward(&self.step, 1)?;
        self.length += 1;
        Ok(())
    }

    /// The logits of what follows.
    pub fn logits(&self) -> Result<Vec<f32>> {
        self.logits.read_f32()
    }

    /// Computes a batch: its keys and values go to the cache, the logits after its last token to `self.logits`.
    fn forward(&self, batch: &Batch, tokens: usize) -> Result<()> {
        let (rt, c, b) = (&self.model.runtime, &self.model.config, batch);
        let length = self.length + tokens;
        if length > self.capacity {
            let why = format!("{length} tokens in a session for {}", self.capacity);
            return Err(Error::invalid("session", why));
        }
        b.kv_len.write(&(length as u32).to_le_bytes())?;
        rt.gather(&self.model.embedding, &b.ids).scale(c.embedding_scale).run_into(&b.x)?;
        for (layer, (k_cache, v_cache)) in self.model.layers.iter().zip(&self.cache) {
            rt.norm(&b.x).weight(&layer.attention_norm).eps(c.eps).run_into(&b.normed)?;
            rt.matmul(&b.normed, &layer.q).run_into(&b.q.rows)?;
            rt.matmul(&b.normed, &layer.k).run_into(&b.k.rows)?;
            rt.matmul(&b.normed, &layer.v).run_into(&b.v.rows)?;
            self.rope(&b.q.heads, b).run()?;
            self.rope(&b.k.heads, b).cache(k_cache).slots(&b.positions).run()?;
            rt.kv_append(&b.v.heads, &b.positions, v_cache).run()?;
            let (k, v) = (batched(k_cache)?, batched(v_cache)?);
            let attention = rt.attention(&b.q.batched, &k, &v).kv_len(&b.kv_len).causal(true);
            attention.scale(c.attention_scale).run_into(&b.attended.batched)?;
            rt.matmul(&b.attended.rows, &layer.o).scale(c.residual_scale).residual(&b.x).run_into(&b.x)?;
            rt.norm(&b.x).weight(&layer.norm).eps(c.eps).run_into(&b.normed)?;
            rt.matmul(&b.normed, &layer.gate).up(&layer.up).act(Activation::Silu).run_into(&b.gated)?;
            rt.matmul(&b.gated, &layer.down).scale(c.residual_scale).residual(&b.x).run_into(&b.x)?;
        }
        rt.norm(&b.last).weight(&self.model.norm).eps(c.eps).run_into(&b.last_normed)?;
        rt.matmul(&b.last_normed, &self.model.output).scale(1.0 / c.logit_scale).run_into(&self.logits)
    }

    fn rope<'a>(&'a self, x: &'a Tensor, batch: &'a Batch) -> RopeCall<'a> {
        let rope = &self.model.config.rope;
        let call = self.model.runtime.rope(x, &batch.positions).style(RopeStyle::Adjacent).dims(rope.dims);
        let call = call.theta(rope.theta).scaling(rope.scaling).factor(rope.factor).low(rope.low).high(rope.high);
        let call = call.original(rope.original).attention(rope.attention);
        match &self.model.rope_factors {
            Some(factors) => call.factors(factors),
            None => call,
        }
    }
}

/// Room for the numbers of some tokens that are computed together.
struct Batch {
    ids: Tensor,
    positions: Tensor,
    kv_len: Tensor,
    x: Tensor,
    last: Tensor, // the last row of `x`
    normed: Tensor,
    last_normed: Tensor,
    q: Heads,
    k: Heads,
    v: Heads,
    attended: Heads,
    gated: Tensor,
}

/// The same numbers as the operations want them.
struct Heads {
    rows: Tensor,    // [tokens, heads * head]
    heads: Tensor,   // [tokens, heads, head]
    batched: Tensor, // [1, tokens, heads, head]
}

impl Batch {
    fn new(model: &Model, tokens: usize) -> Result<Batch> {
        let (rt, c) = (&model.runtime, &model.config);
        let numbers = |n| rt.zeros(DType::I32, &[n]);
        let rows = |width| rt.zeros(DType::F32, &[tokens, width]);
        let heads = |n: usize| {
            let rows = rows(n * c.head)?;
            let heads = rows.reshape(&[tokens, n, c.head])?;
            Ok(Heads { batched: batched(&heads)?, rows, heads })
        };
        let x = rows(c.width)?;
        Ok(Batch {
            ids: numbers(tokens)?,
            positions: numbers(tokens)?,
            kv_len: numbers(1)?,
            last: x.slice(0, tokens.saturating_sub(1)..tokens)?,
            x,
            normed: rows(c.width)?,
            last_normed: rt.zeros(DType::F32, &[1, c.width])?,
            q: heads(c.heads)?,
            k: heads(c.kv_heads)?,
            v: heads(c.kv_heads)?,
            attended: heads(c.heads)?,
            gated: rows(c.hidden)?,
        })
    }
}

/// A batch of one.
fn batched(x: &Tensor) -> Result<Tensor> {
    let shape = x.shape();
    x.reshape(&[1, shape[0], shape[1], shape[2]])
}
