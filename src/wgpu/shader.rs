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

use super::adapter::Abilities;
use crate::{
    dtype::DType,
    error::{Error, Result},
    op::{Op, Operands},
};

/// The embedded files, `(name, text)`.
const SHADERS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// Room for one launch's parameters, in bytes: a multiple of every device's uniform alignment.
pub(super) const PARAMS_BYTES: usize = 512;

#[derive(Debug, Clone)]
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
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    shader: &'static str,
    /// What the plan's name ends in.
    pub(super) variant: &'static str,
    pub(super) operands: Operands,
    space: Vec<usize>,
    args: Vec<Arg>,
    params: Vec<(&'static str, Value)>,
    flags: Vec<&'static str>,
    consts: Vec<(&'static str, usize)>,
    code: String,
    pub(super) groups: usize,
    /// Constants the shader reads as `constants`; empty for none.
    pub(super) table: Vec<u32>,
    /// Operands bound as `vec4<u32>`: their rows begin at multiples of 16 bytes where the operand does.
    quads: Vec<&'static str>,
    /// Operands of f16 bound as `vec4<f16>`, `NAME_halves` in the shader, and aligned as quads are.
    pub(super) halves: Vec<&'static str>,
    /// Words of memory that the launch lends, `scratch` in the shader from `p.scratch_at` on.
    pub(super) scratch: usize,
    /// Launched behind this one, on the same operands and scratch memory.
    pub(super) then: Option<Box<Kernel>>,
    /// Launched in its place where an operand of `quads` begins elsewhere.
    pub(super) otherwise: Option<Box<Kernel>>,
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
        let args = args.collect();
        // The points of a format's grid; operands of different such formats do not meet.
        let grid = operands.iter().find_map(|o| crate::quant::points(o.spec.dtype())).unwrap_or_default();
        let table = grid.chunks(2).map(|p| p[0] as u32 | (p[1] as u32) << 16).collect();
        Kernel {
            shader,
            variant: shader,
            args,
            operands,
            space: space.to_vec(),
            params: Vec::new(),
            flags: Vec::new(),
            consts: Vec::new(),
            code: String::new(),
            groups: 0,
            table,
            quads: Vec::new(),
            halves: Vec::new(),
            scratch: 0,
            then: None,
            otherwise: None,
        }
    }

    /// Binds an operand as `vec4<u32>`: where its kernel's `otherwise` serves what is not aligned.
    pub(super) fn quad(&mut self, name: &'static str, on: bool) {
        if on {
            self.quads.push(name);
        }
    }

    /// Whether the operand must begin at a multiple of 16 bytes.
    pub(super) fn by_quads(&self, name: &str) -> bool {
        self.quads.contains(&name) || self.halves.contains(&name)
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

    /// Uses what the device offers where the shader has a use for it.
    pub(super) fn enable(&mut self, able: &Abilities) {
        let reduces = self.flags.iter().any(|f| matches!(*f, "reduce" | "pick"));
        let cooperates = self.flags.contains(&"cooperative");
        self.flag("subgroups", able.subgroups && (reduces || cooperates));
        self.then.iter_mut().chain(&mut self.otherwise).for_each(|k| k.enable(able));
    }

    /// A constant: `NAME` in the shader, and the count of a `#repeat`.
    pub(super) fn constant(&mut self, name: &'static str, value: usize) {
        self.consts.push((name, value));
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
        if self.scratch > 0 {
            all.push(("scratch_at".into(), Value::Whole(0)));
        }
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

    /// Index in the parameters of the first operand's first element; the others' follow, the scratch memory's last.
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
        let scratch = self.scratch > 0;
        let mut key = format!("{} {:?} {:?} {} {scratch}", self.shader, self.flags, self.consts, self.space.len());
        for (o, arg) in self.operands.iter().zip(&self.args) {
            let writes = match (o.role.writes(), self.by_quads(o.name)) {
                (true, _) => "!",
                (false, quads) => ["", "*"][usize::from(quads)],
            };
            let _ = write!(key, " {}{writes}:{}:{}", o.name, o.spec.dtype(), arg.inner.len());
        }
        key + " " + &self.code
    }

    /// The whole text of the shader.
    pub(super) fn source(&self) -> Result<String> {
        let mut text = String::new();
        if self.flags.contains(&"cooperative") {
            text += "enable f16;\nenable wgpu_cooperative_matrix;\n";
        }
        text += "struct Params {\n";
        for (name, value) in self.all_params() {
            let ty = if matches!(value, Value::Real(_)) { "f32" } else { "u32" };
            let _ = writeln!(text, "    {name}: {ty},");
        }
        text.push_str("}\n@group(1) @binding(0) var<uniform> p: Params;\n");
        for (name, value) in &self.consts {
            let _ = writeln!(text, "const {name} = {value}u;");
        }
        let names: Vec<&str> = self.operands.iter().map(|o| o.name).collect();
        let dtypes: Vec<&str> = self.operands.iter().map(|o| o.spec.dtype().name()).collect();
        let encodes = self.operands.iter().any(|o| o.role.writes() && o.spec.dtype().is_quantized());
        let on = |flag: &str| {
            self.flags.contains(&flag)
                || names.contains(&flag)
                || dtypes.contains(&flag)
                || (encodes && flag == "encode")
        };
        text += &expand(file("common")?, &on, &[])?;
        for (i, (o, arg)) in self.operands.iter().zip(&self.args).enumerate() {
            let dtype = o.spec.dtype();
            if self.halves.contains(&o.name) {
                let name = o.name;
                let _ =
                    writeln!(text, "@group(0) @binding({i}) var<storage, read_write> {name}_halves: array<vec4<f16>>;");
                text += &locate(o.name, arg.space.len());
                continue;
            }
            let quads = self.by_quads(o.name);
            text += &declare(o.name, i, dtype, o.role.writes(), quads);
            if dtype.is_quantized() {
                let on = |flag: &str| format_flag(flag, dtype, o.role.writes());
                text += &expand(file("quant")?, &on, &[])?.replace("T_", &format!("{}_", o.name));
            }
            if self.flags.contains(&"load4") && (dtype.is_quantized() || dtype.is_float()) && !o.role.writes() {
                text += &declare_load4(o.name, dtype, quads);
            }
            text += &locate(o.name, arg.space.len());
        }
        if !self.table.is_empty() {
            let binding = self.operands.len();
            let _ = writeln!(text, "@group(0) @binding({binding}) var<storage, read_write> constants: array<u32>;");
        }
        if self.scratch > 0 {
            let binding = self.operands.len() + usize::from(!self.table.is_empty());
            let _ = writeln!(text, "@group(0) @binding({binding}) var<storage, read_write> scratch: array<f32>;");
        }
        text += &self.code;
        text += &expand(file(self.shader)?, &on, &self.consts)?;
        Ok(text)
    }
}

/// Which parts of `quant.wgsl` a format needs.
fn format_flag(flag: &str, dtype: DType, writes: bool) -> bool {
    let name = dtype.name();
    match flag {
        "k_groups" => matches!(dtype, DType::Q4_K | DType::Q5_K),
        "e2m1" => matches!(dtype, DType::MXFP4 | DType::NVFP4),
        "iq4_levels" => matches!(dtype, DType::IQ4_NL | DType::IQ4_XS),
        "grid" => crate::quant::points(dtype).is_some(),
        "encode" => writes,
        "encode_bytes" => writes && matches!(dtype, DType::Q8_0 | DType::Q8_1),
        "encode_codes" => writes && matches!(dtype, DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1),
        "encode_fifths" => writes && matches!(dtype, DType::Q5_0 | DType::Q5_1),
        "encode_offset" => writes && matches!(dtype, DType::Q4_1 | DType::Q5_1),
        _ => flag.strip_prefix("encode_").map_or(flag == name, |encoded| writes && encoded == name),
    }
}

fn file(name: &str) -> Result<&'static str> {
    let found = SHADERS.iter().find(|f| f.0 == name);
    found.map(|f| f.1).ok_or_else(|| Error::unsupported(name, "no such shader is embedded"))
}

/// The templating step. Keeps the lines whose `#if NAME` .. `#else` .. `#end` hold, and writes those between
/// `#repeat v COUNT` and its `#end` COUNT times, `$v` being 0, 1, ... `#main THREADS` is the head of the entry point, `#use NAME`
/// another file.
fn expand(text: &str, on: &dyn Fn(&str) -> bool, consts: &[(&str, usize)]) -> Result<String> {
    let mut lines = text.lines();
    let mut out = String::with_capacity(text.len());
    block(&mut lines, on, consts, &mut out)?;
    Ok(out)
}

/// Expands lines up to the `#else` or `#end` that closes the block, which is returned.
fn block<'a>(
    lines: &mut std::str::Lines<'a>,
    on: &dyn Fn(&str) -> bool,
    consts: &[(&str, usize)],
    out: &mut String,
) -> Result<Option<&'a str>> {
    while let Some(line) = lines.next() {
        let Some(directive) = line.trim_start().strip_prefix('#') else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        let words: Vec<&str> = directive.split_whitespace().collect();
        match words[..] {
            ["if", flag] => {
                let (mut yes, mut no) = (String::new(), String::new());
                if block(lines, on, consts, &mut yes)? == Some("else") {
                    block(lines, on, consts, &mut no)?;
                }
                out.push_str(if on(flag) { &yes } else { &no });
            }
            ["repeat", variable, count] => {
                let mut body = String::new();
                block(lines, on, consts, &mut body)?;
                let known = consts.iter().find(|c| c.0 == count).map(|c| c.1);
                let Some(count) = known.or_else(|| count.parse().ok()) else { continue };
                let variable = format!("${variable}");
                (0..count).for_each(|i| out.push_str(&body.replace(&variable, &i.to_string())));
            }
            ["use", name] => _ = block(&mut file(name)?.lines(), on, consts, out)?,
            ["main", threads] => out.push_str(&entry(threads, on("subgroups"))),
            ["else"] => return Ok(Some("else")),
            ["end"] => return Ok(Some("end")),
            _ => return Err(Error::unsupported("shader", format_args!("#{directive} is not understood"))),
        }
    }
    Ok(None)
}

/// The head of `main`: `id` is the workgroup, `lane` the thread in it.
fn entry(threads: &str, subgroups: bool) -> String {
    let (arguments, begin) = match subgroups {
        false => ("", ""),
        true => (
            ",\n    @builtin(subgroup_id) subgroup_id: u32, @builtin(num_subgroups) num_subgroups: u32, \
             @builtin(subgroup_invocation_id) subgroup_lane: u32",
            "    subgroup = vec3(subgroup_id, num_subgroups, subgroup_lane);\n",
        ),
    };
    format!(
        "@compute @workgroup_size({threads})\n\
         fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32{arguments}) {{\n{begin}"
    )
}

/// The binding of one operand, and its element's loads and stores.
///
/// Everything is bound as read-write words: operands may be slices of one buffer, and WebGPU refuses a buffer that is read-only
/// and writable in the same dispatch. Elements smaller than a word are written by two atomics that touch no neighbour's bits.
fn declare(name: &str, binding: usize, dtype: DType, writes: bool, quads: bool) -> String {
    let (elements, bytes) = dtype.block();
    let atomic = writes && (elements > 1 || bytes < 4);
    let (array, word_type) = match (atomic, quads) {
        (true, _) => ("words", "atomic<u32>"),
        (_, true) => ("quads", "vec4<u32>"),
        _ => ("words", "u32"),
    };
    let mut text =
        format!("@group(0) @binding({binding}) var<storage, read_write> {name}_{array}: array<{word_type}>;\n");
    let word = match (atomic, quads) {
        (true, _) => format!("atomicLoad(&{name}_words[at])"),
        (_, true) => format!("{name}_quads[at >> 2u][at & 3u]"),
        _ => format!("{name}_words[at]"),
    };
    let _ = writeln!(text, "fn {name}_word(at: u32) -> u32 {{ return {word}; }}");
    let store = |bits: u32, mask: u64, share: u32| match share {
        0 => format!("{name}_words[at] = bits;"),
        _ => format!(
            "let shift = {bits}u * (at & {}u); \
             atomicAnd(&{name}_words[at >> {share}u], ~({mask}u << shift)); \
             atomicOr(&{name}_words[at >> {share}u], bits << shift);",
            (1 << share) - 1
        ),
    };
    if elements > 1 {
        let _ = writeln!(
            text,
            "fn load_{name}(i: u32) -> f32 {{ let j = i % {elements}u; \
             return {name}_decode4(p.{name}_at + i / {elements}u * {bytes}u, j & ~3u)[j & 3u]; }}"
        );
        if atomic {
            let stored = store(8, 255, 2);
            let _ = writeln!(text, "const {name}_BYTES = {bytes}u;");
            let _ = writeln!(text, "fn {name}_store_byte(at: u32, bits: u32) {{ {stored} }}");
        }
        return text;
    }
    // How many elements share a word: log2, and the bits of one.
    let (share, bits) = match bytes {
        1 => (2, 8),
        2 => (1, 16),
        _ => (0, 32),
    };
    let at = format!("let at = p.{name}_at + i;");
    let mask = (1u64 << bits) - 1;
    let (value, decoded, encoded) = match dtype {
        DType::F16 => ("f32", "f16_decode(bits)", "f16_encode(v)"),
        DType::BF16 => ("f32", "bf16_decode(bits)", "bf16_encode(v)"),
        DType::F8E4M3 => ("f32", "f8e4m3_decode(bits)", "f8e4m3_encode(v)"),
        DType::F8E5M2 => ("f32", "f16_decode(bits << 8u)", "f8e5m2_encode(v)"),
        DType::F32 => ("f32", "bitcast<f32>(bits)", "bitcast<u32>(v)"),
        DType::I8 => ("i32", "(bitcast<i32>(bits << 24u) >> 24u)", "bitcast<u32>(v) & 0xffu"),
        DType::I32 => ("i32", "bitcast<i32>(bits)", "bitcast<u32>(v)"),
        _ => ("u32", "bits", "v & 0xffu"),
    };
    let loaded = match share {
        0 => format!("{name}_word(at)"),
        _ => format!("({name}_word(at >> {share}u) >> ({bits}u * (at & {}u))) & {mask}u", (1 << share) - 1),
    };
    let _ = writeln!(text, "fn load_bits_{name}(i: u32) -> u32 {{ {at} return {loaded}; }}");
    let _ = writeln!(text, "fn load_{name}(i: u32) -> {value} {{ let bits = load_bits_{name}(i); return {decoded}; }}");
    if writes {
        let stored = store(bits, mask, share);
        let _ = writeln!(text, "fn store_bits_{name}(i: u32, bits: u32) {{ {at} {stored} }}");
        text += &declare_store4(name, dtype);
        let _ = writeln!(text, "fn store_{name}(i: u32, v: {value}) {{ store_bits_{name}(i, {encoded}); }}");
    }
    text
}

/// `store4_NAME(i, v)`: neighbouring elements i .. i + 4 of floats. Two halves of one word are one store, where one would be two atomics.
fn declare_store4(name: &str, dtype: DType) -> String {
    let pairs = match dtype {
        DType::F16 | DType::BF16 => {
            let encode = dtype.name();
            let pair = |a: &str, b: &str| format!("{encode}_encode(v.{a}) | ({encode}_encode(v.{b}) << 16u)");
            format!(
                "let at = (p.{name}_at + i) >> 1u; if ((p.{name}_at + i) & 1u) == 0u {{ \
                 atomicStore(&{name}_words[at], {}); atomicStore(&{name}_words[at + 1u], {}); return; }} ",
                pair("x", "y"),
                pair("z", "w")
            )
        }
        _ if dtype.is_float() => String::new(),
        _ => return String::new(),
    };
    format!(
        "fn store4_{name}(i: u32, v: vec4<f32>) {{ {pairs}store_{name}(i, v.x); store_{name}(i + 1u, v.y); \
         store_{name}(i + 2u, v.z); store_{name}(i + 3u, v.w); }}\n"
    )
}

/// `load4_NAME(i)`: neighbouring elements i .. i + 4; of a quantized operand `i` is a multiple of 4. `load8_NAME(i)`: as many again; of
/// a quantized operand, or one bound by quads, `i` is a multiple of 8.
fn declare_load4(name: &str, dtype: DType, quads: bool) -> String {
    let (elements, bytes) = dtype.block();
    let both = format!("return mat2x4(load4_{name}(i), load4_{name}(i + 4u));");
    // The halves in components `from` of `q`.
    let halves = |q: &str, from: &str| {
        let pair = |c: char| match dtype {
            DType::F16 => format!("unpack2x16float({q}.{c})"),
            _ => format!("bf16_decode({q}.{c} & 0xffffu), bitcast<f32>({q}.{c} & 0xffff0000u)"),
        };
        from.chars().map(pair).collect::<Vec<_>>().join(", ")
    };
    let (four, eight) = match dtype {
        DType::F32 if quads => (format!("return bitcast<vec4<f32>>({name}_quads[(p.{name}_at + i) >> 2u]);"), both),
        DType::F16 | DType::BF16 if quads => (
            format!(
                "let q = {name}_quads[(p.{name}_at + i) >> 3u]; let h = select(q.xy, q.zw, ((p.{name}_at + i) & 4u) != 0u); \
                 return vec4({});",
                halves("h", "xy")
            ),
            format!(
                "let q = {name}_quads[(p.{name}_at + i) >> 3u]; return mat2x4(vec4({}), vec4({}));",
                halves("q", "xy"),
                halves("q", "zw")
            ),
        ),
        DType::F32 => (
            format!(
                "let at = p.{name}_at + i; \
                 return bitcast<vec4<f32>>(vec4({name}_words[at], {name}_words[at + 1u], {name}_words[at + 2u], {name}_words[at + 3u]));"
            ),
            both,
        ),
        DType::F16 | DType::BF16 => (
            format!(
                "let at = (p.{name}_at + i) >> 1u; \
                 if ((p.{name}_at + i) & 1u) == 0u {{ \
                 let h = vec2({name}_words[at], {name}_words[at + 1u]); return vec4({}); }} \
                 return vec4(load_{name}(i), load_{name}(i + 1u), load_{name}(i + 2u), load_{name}(i + 3u));",
                halves("h", "xy")
            ),
            both,
        ),
        _ => (format!("return {name}_decode4(p.{name}_at + i / {elements}u * {bytes}u, i % {elements}u);"), both),
    };
    format!("fn load4_{name}(i: u32) -> vec4<f32> {{ {four} }}\nfn load8_{name}(i: u32) -> mat2x4<f32> {{ {eight} }}\n")
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
