//! From an operation to a pipeline: `shaders/*.wgsl` assembled by one small step.
//!
//! A [`Kernel`] says which shader, how each operand is addressed, which parameters and which `#if` flags. From that follow
//! the text of the shader (only when it is not compiled yet), the pipeline's key, and the parameters' bytes:
//!
//! ```text
//! struct Params { grid_x: u32, x_at: u32, x_s0: u32, x_t0: u32, n: u32, eps: f32, ... }     shapes and strides: run-time values
//! x_words, load_x(element), store_x(element, value), at_x(index in the space)               per operand
//! common.wgsl, quant.wgsl once per quantized operand, NAME.wgsl
//! ```
//!
//! The *space* of a kernel is the list of extents it iterates over (elements, rows, or matrices of a batch); `at_x(i)` is the
//! operand's element offset at index `i` of it, and `x_t0`, `x_t1`, ... are its strides along the dimensions inside.

use std::fmt::Write;

use crate::{
    dtype::DType,
    error::{Error, Result},
    op::{Op, Operands},
};

/// The embedded files, `(name, text)`.
const SHADERS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// Room for one launch's parameters, in bytes: a multiple of every device's uniform alignment.
pub(super) const PARAMS_BYTES: usize = 512;

#[derive(Debug)]
struct Arg {
    space: Vec<usize>, // strides along the space, outermost first
    inner: Vec<usize>, // strides of the dimensions inside, innermost first
}

#[derive(Debug, Clone, Copy)]
enum Value {
    Whole(usize),
    Real(f32),
}

/// A kernel to be, described by an operation's file.
#[derive(Debug)]
pub(super) struct Kernel {
    shader: &'static str,
    /// What the plan's name ends in.
    pub(super) variant: &'static str,
    pub(super) operands: Operands,
    space: Vec<usize>,
    args: Vec<Arg>,
    params: Vec<(&'static str, Value)>,
    flags: Vec<&'static str>,
    code: String,
    pub(super) groups: usize,
    /// Constants the shader reads as `table_words`; empty for none.
    pub(super) table: Vec<u32>,
}

impl Kernel {
    /// A kernel that iterates over `space`; operands broadcast to it, aligned at its end, once their last `inner` dimensions
    /// are taken off.
    pub(super) fn new(op: &Op, shader: &'static str, space: &[usize], inner: usize) -> Kernel {
        let operands = op.operands();
        let args = operands.iter().map(|o| {
            let stride = |i: usize| if o.spec.dim(i) > 1 { o.spec.stride(i) } else { 0 };
            Arg {
                space: (0..space.len()).rev().map(|i| stride(i + inner)).collect(),
                inner: (0..inner).map(stride).collect(),
            }
        });
        Kernel {
            shader,
            variant: shader,
            args: args.collect(),
            operands,
            space: space.to_vec(),
            params: Vec::new(),
            flags: Vec::new(),
            code: String::new(),
            groups: 0,
            table: Vec::new(),
        }
    }

    /// Other strides for an operand: along the space (outermost first), and inside (innermost first).
    pub(super) fn strides(&mut self, name: &str, space: &[usize], inner: &[usize]) {
        if let Some(i) = self.operands.iter().position(|o| o.name == name) {
            self.args[i] = Arg { space: space.to_vec(), inner: inner.to_vec() };
        }
    }

    /// A parameter `p.NAME: u32`.
    pub(super) fn whole(&mut self, name: &'static str, value: usize) {
        self.params.push((name, Value::Whole(value)));
    }

    /// A parameter `p.NAME: f32`.
    pub(super) fn real(&mut self, name: &'static str, value: f32) {
        self.params.push((name, Value::Real(value)));
    }

    /// Makes `#if NAME` true. Names of the operands present are so by themselves.
    pub(super) fn flag(&mut self, name: &'static str, on: bool) {
        if on {
            self.flags.push(name);
        }
    }

    /// Declarations put before the shader's own.
    pub(super) fn code(&mut self, text: impl AsRef<str>) {
        self.code.push_str(text.as_ref());
        self.code.push('\n');
    }

    /// One thread per element, in groups of 64.
    pub(super) fn elements(&mut self, count: usize) {
        self.whole("elements", count);
        self.groups = count.div_ceil(64);
    }

    /// Merges neighbouring dimensions of the space that every operand steps through evenly: fewer divisions in the shader,
    /// and fewer different shaders.
    pub(super) fn collapse(&mut self) {
        let mut i = 0;
        while i + 1 < self.space.len() {
            let inner = self.space[i + 1];
            if self.space[i] == 1 || self.args.iter().all(|a| a.space[i] == a.space[i + 1] * inner) {
                self.space[i + 1] *= self.space[i];
                self.space.remove(i);
                self.args.iter_mut().for_each(|a| _ = a.space.remove(i));
            } else {
                i += 1;
            }
        }
    }

    /// All parameters, in the order of the shader's struct, the launch's own first: `grid_x`, `groups`, `infinity`, and each
    /// operand's first element.
    fn all_params(&self) -> Vec<(String, Value)> {
        let mut all: Vec<(String, Value)> = Vec::new();
        all.push(("grid_x".into(), Value::Whole(self.grid().0)));
        all.push(("groups".into(), Value::Whole(self.groups)));
        all.push(("infinity".into(), Value::Whole(f32::INFINITY.to_bits() as usize)));
        all.extend(self.operands.iter().map(|o| (format!("{}_at", o.name), Value::Whole(0))));
        for (i, &n) in self.space.iter().rev().enumerate() {
            all.push((format!("n{i}"), Value::Whole(n)));
        }
        for (o, arg) in self.operands.iter().zip(&self.args) {
            for (i, &s) in arg.space.iter().rev().enumerate() {
                all.push((format!("{}_s{i}", o.name), Value::Whole(s)));
            }
            for (i, &s) in arg.inner.iter().enumerate() {
                all.push((format!("{}_t{i}", o.name), Value::Whole(s)));
            }
        }
        all.extend(self.params.iter().map(|&(name, value)| (name.to_string(), value)));
        all
    }

    /// Index in the parameters of the first operand's first element.
    pub(super) const FIRST_AT: usize = 3;

    /// The parameters' words, each operand's first element still 0. Fails where a number needs more than 32 bits.
    pub(super) fn words(&self) -> Result<Vec<u32>, String> {
        let too_large =
            |name: &str, v: usize| format!("{name} = {v} needs more than the 32 bits a shader indexes with");
        let words: Result<Vec<u32>, String> = (self.all_params().iter())
            .map(|(name, value)| match *value {
                Value::Real(v) => Ok(v.to_bits()),
                // Half of the range, so that no sum of an index and a group's size wraps.
                Value::Whole(v) if v <= 1 << 31 => Ok(v as u32),
                Value::Whole(v) => Err(too_large(name, v)),
            })
            .collect();
        let words = words?;
        if words.len() * 4 > PARAMS_BYTES {
            return Err(format!("{} parameters are more than fit", words.len()));
        }
        Ok(words)
    }

    /// Workgroups in x and y: 65535 at most in each.
    pub(super) fn grid(&self) -> (usize, usize) {
        let x = self.groups.clamp(1, 65535);
        (x, self.groups.div_ceil(x))
    }

    /// Two kernels with the same key have the same shader text.
    pub(super) fn key(&self) -> String {
        let mut key = format!("{} {:?} {}", self.shader, self.flags, self.space.len());
        for (o, arg) in self.operands.iter().zip(&self.args) {
            let writes = if o.role.writes() { "!" } else { "" };
            let _ = write!(key, " {}{writes}:{}:{}", o.name, o.spec.dtype(), arg.inner.len());
        }
        key + " " + &self.code
    }

    /// The whole text of the shader.
    pub(super) fn source(&self) -> Result<String> {
        let mut text = String::from("struct Params {\n");
        for (name, value) in self.all_params() {
            let ty = if matches!(value, Value::Real(_)) { "f32" } else { "u32" };
            let _ = writeln!(text, "    {name}: {ty},");
        }
        text.push_str("}\n@group(1) @binding(0) var<uniform> p: Params;\n");
        let names: Vec<&str> = self.operands.iter().map(|o| o.name).collect();
        let on = |flag: &str| self.flags.contains(&flag) || names.contains(&flag);
        text += &expand(file("common")?, &on)?;
        for (i, (o, arg)) in self.operands.iter().zip(&self.args).enumerate() {
            text += &declare(o.name, i, o.spec.dtype(), o.role.writes());
            if o.spec.dtype().is_quantized() {
                let format = expand(file("quant")?, &|flag| flag == o.spec.dtype().name())?;
                text += &format.replace("T_", &format!("{}_", o.name));
            }
            text += &locate(o.name, arg.space.len());
        }
        if !self.table.is_empty() {
            let binding = self.operands.len();
            let _ = writeln!(text, "@group(0) @binding({binding}) var<storage, read_write> table_words: array<u32>;");
        }
        text += &self.code;
        text += &expand(file(self.shader)?, &on)?;
        Ok(text)
    }
}

fn file(name: &str) -> Result<&'static str> {
    let found = SHADERS.iter().find(|f| f.0 == name);
    found.map(|f| f.1).ok_or_else(|| Error::unsupported(name, "no such shader is embedded"))
}

/// Keeps the lines whose `#if NAME` .. `#else` .. `#end` hold.
fn expand(text: &str, on: &dyn Fn(&str) -> bool) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut open: Vec<bool> = Vec::new();
    for line in text.lines() {
        let Some(directive) = line.trim_start().strip_prefix('#') else {
            if open.iter().all(|&o| o) {
                out.push_str(line);
                out.push('\n');
            }
            continue;
        };
        match (directive.split_once(' '), directive, open.last_mut()) {
            (Some(("if", flag)), ..) => open.push(on(flag.trim())),
            (None, "else", Some(last)) => *last = !*last,
            (None, "end", Some(_)) => _ = open.pop(),
            _ => return Err(Error::unsupported("shader", format_args!("#{directive} is not understood"))),
        }
    }
    Ok(out)
}

/// The binding of one operand, and its element's loads and stores.
///
/// Everything is bound as read-write words: operands may be slices of one buffer, and WebGPU refuses a buffer that is read-only
/// and writable in the same dispatch. Elements smaller than a word are written by two atomics that touch no neighbour's bits.
fn declare(name: &str, binding: usize, dtype: DType, writes: bool) -> String {
    let (elements, bytes) = dtype.block();
    let atomic = writes && bytes < 4;
    let word_type = if atomic { "atomic<u32>" } else { "u32" };
    let mut text =
        format!("@group(0) @binding({binding}) var<storage, read_write> {name}_words: array<{word_type}>;\n");
    if elements > 1 {
        let _ = writeln!(
            text,
            "fn load_{name}(i: u32) -> f32 {{ return {name}_decode(p.{name}_at + i / {elements}u * {bytes}u, i % {elements}u); }}"
        );
        return text;
    }
    let word =
        |at: &str| if atomic { format!("atomicLoad(&{name}_words[{at}])") } else { format!("{name}_words[{at}]") };
    // How many elements share a word: log2, and the bits of one.
    let (share, bits) = match bytes {
        1 => (2, 8),
        2 => (1, 16),
        _ => (0, 32),
    };
    let at = format!("let at = p.{name}_at + i;");
    let shift = format!("let shift = {bits}u * (at & {}u);", (1 << share) - 1);
    let mask = (1u64 << bits) - 1;
    let (value, decoded, encoded) = match dtype {
        DType::F16 => ("f32", "f16_decode(bits)", "f16_encode(v)"),
        DType::BF16 => ("f32", "bf16_decode(bits)", "bf16_encode(v)"),
        DType::F32 => ("f32", "bitcast<f32>(bits)", "bitcast<u32>(v)"),
        DType::I8 => ("i32", "(bitcast<i32>(bits << 24u) >> 24u)", "bitcast<u32>(v) & 0xffu"),
        DType::I32 => ("i32", "bitcast<i32>(bits)", "bitcast<u32>(v)"),
        _ => ("u32", "bits", "v & 0xffu"),
    };
    let loaded = match share {
        0 => word("at"),
        _ => format!("({} >> shift) & {mask}u", word(&format!("at >> {share}u"))),
    };
    let _ = writeln!(text, "fn load_bits_{name}(i: u32) -> u32 {{ {at} {shift} return {loaded}; }}");
    let _ = writeln!(text, "fn load_{name}(i: u32) -> {value} {{ let bits = load_bits_{name}(i); return {decoded}; }}");
    if writes {
        let stored = match share {
            0 => format!("{name}_words[at] = bits;"),
            _ => format!(
                "atomicAnd(&{name}_words[at >> {share}u], ~({mask}u << shift)); \
                 atomicOr(&{name}_words[at >> {share}u], bits << shift);"
            ),
        };
        let _ = writeln!(text, "fn store_bits_{name}(i: u32, bits: u32) {{ {at} {shift} {stored} }}");
        let _ = writeln!(text, "fn store_{name}(i: u32, v: {value}) {{ store_bits_{name}(i, {encoded}); }}");
    }
    text
}

/// `at_NAME`: the element offset at an index of the space.
fn locate(name: &str, rank: usize) -> String {
    let mut text = format!("fn at_{name}(index: u32) -> u32 {{ var i = index; var at = 0u;");
    for d in 0..rank {
        match d + 1 == rank {
            true => _ = write!(text, " at += i * p.{name}_s{d};"),
            false => _ = write!(text, " at += i % p.n{d} * p.{name}_s{d}; i /= p.n{d};"),
        }
    }
    text + " return at; }\n"
}
