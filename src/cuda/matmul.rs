//! Which kernels multiply matrices, best first: see the heads of kernels/gemv.cu, gemm.cu, gemm_stream.cu, gemm_mixed.cu, gemm_exact.cu and matmul.cu.

use std::sync::Arc;

use super::{
    driver::Device,
    kernel::{Compiled, Kernel, Sequence, activation},
    module::Modules,
};
use crate::{
    backend::Plans,
    dtype::DType,
    error::{Error, Result},
    layout::Spec,
    op::{Activation, Determinism, Features, Matmul, Numerics, Op, Operands, Real},
};

mod stream;

/// Up to this many rows a warp sums an output of its own, in the kernels for every type; beyond, tiles share their operands.
const FEW: usize = 4;

/// Up to this many rows of x the kernels of gemv.cu take.
const GEMV_ROWS: usize = 8;

/// Bytes of scratch memory that weights unpacked for one product may take.
const MOST_UNPACKED: usize = 1 << 29;

/// For so many groups of blocks gemm_few.cu counts those that are done.
const MOST_GROUPS: usize = 1024;

/// From more rows of x on tiles of f32 pay, which are twice as high.
const EXACT_ROWS: usize = 32;

/// Up to this many rows of x the kernels of gemm_few.cu take, where weights are in blocks.
const MANY_ROWS: usize = 128;

pub(super) fn plans(op: &Op, o: &Matmul, device: &Arc<Device>, modules: &Modules) -> Result<Plans> {
    op.require(Features::all())?;
    let (batch, m, n, k) = o.dims();
    let w_scales = o.w_scale.map_or(0, |s| match (s.rank(), s.dim(0)) {
        (2, _) => BLOCKS,
        (_, 1) => 1,
        _ => 2,
    });
    let product = Product {
        op,
        operands: op.operands(),
        sizes: [batch, m, n, k, 0],
        act: o.act,
        scale: o.scale,
        w_scales,
        numerics: o.numerics,
    };
    product.plans(device, modules)
}

/// `w_scales` of kernels/common/product.cuh.
const BLOCKS: u32 = 3;

/// A product of matrices, or of groups of rows with a matrix each.
pub(super) struct Product<'a> {
    pub(super) op: &'a Op,
    pub(super) operands: Operands,
    /// Batch, m, n, k, groups.
    pub(super) sizes: [usize; 5],
    pub(super) act: Activation,
    pub(super) scale: Real,
    pub(super) w_scales: u32,
    pub(super) numerics: Numerics,
}

/// A kernel: its file, its name, rows of x and columns of w that a block computes.
struct Choice {
    family: &'static str,
    entry: &'static str,
    tile: (usize, usize),
}

impl Product<'_> {
    pub(super) fn plans(&self, device: &Arc<Device>, modules: &Modules) -> Result<Plans> {
        let [batch, m, n, k, groups] = self.sizes;
        if m > i32::MAX as usize || k >= 1 << 29 {
            return Err(Error::unsupported(self.op, "more rows or terms than the kernels count"));
        }
        let asked = self.op.determinism();
        let integers =
            matches!(self.spec("x").map(Spec::dtype), Some(DType::I8 | DType::U8)) && self.w_scales != BLOCKS;
        // The same kernel for every number of rows, where a row's bits may not depend on its company.
        let few = m.checked_div(groups).unwrap_or(m) <= FEW && asked < Determinism::BatchInvariant;
        let mut general = self
            .kernel("matmul", ["tiled", "tiled_int", "gemv", "gemv_int"][2 * usize::from(few) + usize::from(integers)]);
        (general.threads, general.blocks) = match few {
            true => (128, (batch * m * n).div_ceil(4)),
            false => (256, self.tiles_down(64) * n.div_ceil(64)),
        };
        let promised = if asked < Determinism::BatchInvariant { Determinism::ThreadCount } else { asked };
        let general = Arc::new(general.compile(device, modules, promised)?);
        let mut plans: Plans = Vec::new();
        if asked < Determinism::BatchInvariant && batch * m * n * k > 0 {
            let processors = device.driver.processors();
            // PTX for sm_90a loads on compute capability 9.0 alone.
            let hopper = device.driver.capability() == (9, 0);
            let [wide, many] =
                [Product::wide, Product::many_rows_of_blocks].map(|of| of(self, processors).filter(|_| hopper));
            let blocks = self.few_rows_of_blocks(processors, device.driver.capability());
            let few = [blocks, self.few_rows_of_floats(), self.few_rows()];
            let tiles = [self.tiles_of_fp8(processors), self.tensor_cores(processors)];
            // What was not measured yet (`many`, `stream`) comes behind what was.
            let last = [self.stream(processors).filter(|_| wide.is_none()), self.exact(processors)];
            for steps in [wide].into_iter().chain(few).chain([many]).chain(tiles).chain(last).flatten() {
                let steps: Result<Vec<Compiled>> =
                    steps.into_iter().map(|s| s.compile(device, modules, promised)).collect();
                match steps {
                    Ok(steps) => plans.extend(Sequence::of(steps, Some(general.clone()))),
                    Err(Error::Unsupported { .. }) => {} // the device is too old for it
                    Err(other) => return Err(other),
                }
            }
        }
        plans.push(general);
        Ok(plans)
    }

    fn spec(&self, name: &str) -> Option<&Spec> {
        self.operands.iter().find(|o| o.name == name).map(|o| &o.spec)
    }

    /// Every kernel's parameters: `Args` of kernels/common/product.cuh.
    fn kernel(&self, family: &'static str, entry: &'static str) -> Kernel {
        let mut kernel = Kernel::new(self.op, family, entry);
        for name in ["x", "w", "out", "up", "bias", "residual", "x_scale", "w_scale", "row_scale"] {
            kernel.tensor(name);
        }
        kernel.tensor("offsets");
        let [batch, m, n, k, groups] = self.sizes;
        let shape = self.spec("out").map_or(&[][..], Spec::shape);
        kernel.extents(shape, 2, 2);
        [m, n, k, groups, batch, 1].into_iter().for_each(|v| kernel.word(v));
        kernel.pair(activation(self.act), self.scale.get().to_bits());
        kernel.pair(self.w_scales, u32::from(self.direct()));
        kernel.scratch_address();
        let (elements, bytes) = self.spec("w").map_or((1, 1), |w| w.dtype().block());
        kernel.pair(elements as u32, bytes as u32);
        kernel
    }

    /// Whether the sums are the result, and rows of out begin at multiples of 16 bytes.
    fn direct(&self) -> bool {
        let plain = self.operands.iter().all(|o| matches!(o.name, "x" | "w" | "out" | "offsets"));
        let dense = self.spec("out").is_some_and(aligned_rows);
        plain && dense && self.act == Activation::None && self.scale == Real::ONE
    }

    /// How many tiles of `height` rows there are at most.
    fn tiles_down(&self, height: usize) -> usize {
        let [batch, m, _, _, groups] = self.sizes;
        match groups {
            0 => batch * m.div_ceil(height),
            _ => m / height + m.min(groups + 2),
        }
    }

    /// Whether each row of x, w and up begins at a multiple of 16 bytes, if the operand does.
    fn aligned(&self, multiple: usize) -> bool {
        let ok = |name| self.spec(name).is_none_or(|s| s.dtype().is_quantized() || aligned_rows(s));
        self.sizes[3].is_multiple_of(multiple) && ["x", "w", "up"].into_iter().all(ok)
    }

    fn types(&self) -> Option<(DType, DType)> {
        Some((self.spec("x")?.dtype(), self.spec("w")?.dtype()))
    }

    /// Up to 8 rows of x.
    fn few_rows(&self) -> Option<Vec<Kernel>> {
        let [batch, m, n, k, groups] = self.sizes;
        let (x, w) = self.types()?;
        let served =
            x.is_float() && (w.is_float() || w.is_quantized() && self.w_scales == 0 || is_fp8(w)) && batch == 1;
        let few = if groups > 0 { m <= 4 * groups } else { m <= GEMV_ROWS };
        if !served || !few || !self.aligned(8) {
            return None;
        }
        let dot = self.numerics == Numerics::Fast && w.is_quantized();
        let one = groups > 0 || m == 1;
        let entry = match (dot, w, one) {
            (false, DType::Q4_0, true) => "exact_q4_0_1",
            (false, DType::Q4_0, false) => "exact_q4_0_8",
            (false, DType::Q8_0, true) => "exact_q8_0_1",
            (false, DType::Q8_0, false) => "exact_q8_0_8",
            (false, DType::Q4_K, true) => "exact_q4_k_1",
            (false, DType::Q4_K, false) => "exact_q4_k_8",
            (false, DType::Q6_K, true) => "exact_q6_k_1",
            (false, DType::Q6_K, false) => "exact_q6_k_8",
            (false, DType::F8E4M3, true) => "exact_f8e4m3_1",
            (false, DType::F8E4M3, false) => "exact_f8e4m3_8",
            (false, _, true) => "exact_any_1",
            (false, _, false) => "exact_any_8",
            (true, DType::Q4_0, true) => "dot_q4_0_1",
            (true, DType::Q4_0, false) => "dot_q4_0_8",
            (true, DType::Q8_0, true) => "dot_q8_0_1",
            (true, DType::Q8_0, false) => "dot_q8_0_8",
            (true, DType::Q4_K, true) => "dot_q4_k_1",
            (true, DType::Q4_K, false) => "dot_q4_k_8",
            (true, DType::Q6_K, true) => "dot_q6_k_1",
            (true, DType::Q6_K, false) => "dot_q6_k_8",
            (true, _, true) => "dot_any_1",
            (true, _, false) => "dot_any_8",
        };
        let mut main = self.kernel("gemv", entry);
        let outputs = if groups > 0 { m * n } else { n };
        (main.threads, main.blocks, main.aligned) = (128, outputs.div_ceil(4), vec!["x", "w", "up"]);
        if !dot {
            return Some(vec![main]);
        }
        let mut quantize = self.kernel("gemv", "quantize");
        (quantize.threads, quantize.blocks, quantize.aligned) = (128, (m * k).div_ceil(128 * 8), vec!["x"]);
        main.scratch = m * k + m * k / 32 * 4;
        Some(vec![quantize, main])
    }

    /// Few rows of x and weights in blocks, on tensor cores: as many blocks as the device has multiprocessors.
    fn few_rows_of_blocks(&self, processors: usize, capability: (i32, i32)) -> Option<Vec<Kernel>> {
        let [batch, m, n, k, groups] = self.sizes;
        let (x, w) = self.types()?;
        let served = x.is_float() && self.numerics == Numerics::Fast && self.w_scales == 0 && batch == 1 && groups == 0;
        if !served || m > MANY_ROWS || !self.aligned(8) {
            return None;
        }
        // For up to 8 rows of x at a time, and for 16: entries, warps of a block and stages of each. Bytes from one of the 16 rows of a stage to the next.
        let (entries, sizes, pitch) = match w {
            DType::Q4_0 => (["q4_0_8", "q4_0_16"], [(12, 2), (12, 2)], 304),
            DType::Q8_0 => (["q8_0_8", "q8_0_16"], [(8, 2), (8, 2)], 560),
            DType::Q4_K => (["q4_k_8", "q4_k_16"], [(12, 2), (12, 2)], 288),
            DType::Q6_K => (["q6_k_8", "q6_k_16"], [(12, 2), (8, 2)], 464),
            _ => return None,
        };
        let wide = usize::from(m > 8);
        let (columns, (warps, stages)) = ([8, 16][wide], sizes[wide]);
        let (rows, passes) = (m.min(columns), m.div_ceil(columns));
        let gated = self.spec("up").is_some();
        let (tiles, steps) = (n.div_ceil(if gated { 8 } else { 16 }), k.div_ceil(512));
        // What a block may have of a multiprocessor's shared memory, beside what the kernel declares.
        let most = match capability {
            (8, 0 | 7) => 162 << 10,
            (9 | 10, _) => 226 << 10,
            _ => 98 << 10,
        };
        // As few shares of k as x in shared memory allows.
        let fits = |splits: usize| {
            let (groups, share) = ((processors / passes / splits).clamp(1, tiles), steps.div_ceil(splits));
            let x = if wide == 0 { rows } else { columns } * (share * 512 + 32) + columns * share * 40;
            let bytes = warps * stages * 16 * pitch + x + warps * 2 * 16 * rows * 4;
            (bytes <= most && groups * passes <= MOST_GROUPS).then_some((splits, groups * splits * passes, bytes))
        };
        let (splits, blocks, shared) = (1..=steps).find_map(fits)?;
        let mut main = self.kernel("gemm_few", entries[wide]);
        (main.threads, main.blocks, main.shared) = (32 * warps as u32, blocks, shared);
        (main.scratch, main.aligned) = (0, vec!["x", "w", "up"]);
        main.early = true;
        main.replace_word(SPLITS, splits);
        if splits > 1 {
            main.scratch = (splits * m * n * if gated { 8 } else { 4 }).next_multiple_of(16);
        }
        if m == 1 {
            return Some(vec![main]);
        }
        // x is made bytes by a kernel before.
        let parts = m * k.div_ceil(256);
        main.scratch += parts * (256 + 16 + 4);
        let words = matches!(w, DType::Q4_0 | DType::Q8_0);
        let mut prepare = self.kernel("gemm_few", if words { "prepare_words" } else { "prepare" });
        (prepare.threads, prepare.blocks, prepare.aligned) = (256, parts.div_ceil(8), vec!["x"]);
        prepare.replace_word(SPLITS, splits);
        Some(vec![prepare, main])
    }

    /// Few rows of x of 16 bits and weights of the same type, or of fp8, on tensor cores.
    fn few_rows_of_floats(&self) -> Option<Vec<Kernel>> {
        let [batch, m, n, _, groups] = self.sizes;
        let entry = match (self.types()?, m > 8) {
            ((DType::BF16, DType::BF16), false) => "bf16_8",
            ((DType::BF16, DType::BF16), true) => "bf16_16",
            ((DType::F16, DType::F16), false) => "f16_8",
            ((DType::F16, DType::F16), true) => "f16_16",
            ((DType::BF16, DType::F8E4M3), false) => "bf16_f8e4m3_8",
            ((DType::BF16, DType::F8E4M3), true) => "bf16_f8e4m3_16",
            ((DType::F16, DType::F8E4M3), false) => "f16_f8e4m3_8",
            ((DType::F16, DType::F8E4M3), true) => "f16_f8e4m3_16",
            _ => return None,
        };
        let fp8 = self.spec("w").is_some_and(|w| is_fp8(w.dtype()));
        if m > 16 || self.w_scales != 0 && !fp8 || batch > 1 || groups > 0 || !self.aligned(if fp8 { 16 } else { 8 }) {
            return None;
        }
        let mut main = self.kernel("gemm_few", entry);
        (main.threads, main.aligned) = (256, vec!["x", "w", "up"]);
        main.early = true;
        main.blocks = n.div_ceil(if self.spec("up").is_some() { 8 } else { 16 });
        Some(vec![main])
    }

    /// The tile for as many rows.
    fn pick(&self, family: &'static str, entries: [&'static str; 3]) -> Choice {
        let [_, m, _, _, groups] = self.sizes;
        // Rows that meet one weight, as far as can be known.
        let rows = if groups > 0 { m.div_ceil(groups) } else { m };
        let (entry, height) = match rows {
            0..=16 => (entries[2], 16),
            17..=64 if entries[1] != entries[0] => (entries[1], 64),
            _ => (entries[0], 128),
        };
        Choice { family, entry, tile: (height, if self.spec("up").is_some() { 64 } else { 128 }) }
    }

    /// Tiles of fp8 on tensor cores that multiply it.
    fn tiles_of_fp8(&self, processors: usize) -> Option<Vec<Kernel>> {
        if !self.fast_fp8() || !self.aligned(16) {
            return None;
        }
        let choice = self.pick("gemm_fp8", ["fp8_128", "fp8_64", "fp8_16"]);
        let shared = 4 * (choice.tile.0 + 128) * 64;
        Some(self.tiles(choice, shared, 64, 2 * processors))
    }

    /// Whether tensor cores may multiply x and w as fp8.
    fn fast_fp8(&self) -> bool {
        self.numerics == Numerics::Fast && self.types() == Some((DType::F8E4M3, DType::F8E4M3))
    }

    /// Tiles on tensor cores.
    fn tensor_cores(&self, processors: usize) -> Option<Vec<Kernel>> {
        use DType::*;
        let (x, w) = self.types()?;
        let fast = self.numerics == Numerics::Fast;
        let bytes = x.block().1;
        let pick = |family, entries| self.pick(family, entries);
        let (bf16, blocks) = (fast || self.exact_in_bf16(), fast && x.is_float());
        let choice = match (x, w) {
            (_, F8E4M3) if bf16 && x.is_float() => pick("gemm_mixed", ["f8e4m3_128", "f8e4m3_128", "f8e4m3_16"]),
            (_, F8E5M2) if bf16 => pick("gemm_mixed", ["any_128", "any_128", "any_16"]),
            (F8E4M3 | F8E5M2, w) if bf16 && w != I8 => pick("gemm_mixed", ["any_128", "any_128", "any_16"]),
            _ if self.w_scales == BLOCKS => return None,
            (BF16, BF16) => pick("gemm", ["bf16_128", "bf16_64", "bf16_16"]),
            (F16, F16) => pick("gemm", ["f16_128", "f16_64", "f16_16"]),
            (F32, F32) if fast => pick("gemm", ["tf32_128", "tf32_64", "tf32_16"]),
            (I8, I8) => pick("gemm", ["s8_128", "s8_64", "s8_16"]),
            (U8, I8) => pick("gemm", ["u8s8_128", "u8s8_64", "u8s8_16"]),
            (_, Q4_0) if blocks => pick("gemm_mixed", ["q4_0_128", "q4_0_128", "q4_0_16"]),
            (_, Q8_0) if blocks => pick("gemm_mixed", ["q8_0_128", "q8_0_128", "q8_0_16"]),
            (_, Q4_K) if blocks => pick("gemm_mixed", ["q4_k_128", "q4_k_128", "q4_k_16"]),
            (_, Q6_K) if blocks => pick("gemm_mixed", ["q6_k_128", "q6_k_128", "q6_k_16"]),
            (_, w) if fast && (w.is_float() || w.is_quantized()) => {
                pick("gemm_mixed", ["any_128", "any_128", "any_16"])
            }
            _ => return None,
        };
        let mixed = choice.family == "gemm_mixed";
        if !self.aligned(if mixed { 8 } else { 16 / bytes }) {
            return None;
        }
        let (stages, step) = if mixed { (2, 32) } else { (4, 64 / bytes) };
        let shared = stages * (choice.tile.0 + 128) * 64;
        Some(self.tiles(choice, shared, step, 2 * processors))
    }

    /// Tiles of f32, for more rows than what streams the weights takes.
    fn exact(&self, processors: usize) -> Option<Vec<Kernel>> {
        let [_, m, _, _, groups] = self.sizes;
        let (x, w) = self.types()?;
        let rows = m.checked_div(groups).unwrap_or(m);
        let entry = match w.is_float() {
            true => "exact_128",
            false if w.is_quantized() || is_fp8(w) => "exact_any_128",
            false => return None,
        };
        if !x.is_float() || rows <= EXACT_ROWS || self.w_scales == BLOCKS || !self.aligned(8) {
            return None;
        }
        let tile = (128, if self.spec("up").is_some() { 64 } else { 128 });
        Some(self.tiles(Choice { family: "gemm_exact", entry, tile }, 0, 16, processors))
    }

    /// Whether all numbers of x and w are exact in bf16, and so are those that follow from them before the sum.
    fn exact_in_bf16(&self) -> bool {
        let exact = |d| d == DType::BF16 || is_fp8(d);
        self.w_scales != BLOCKS && self.types().is_some_and(|(x, w)| exact(x) && exact(w))
    }

    /// Writes w, up, and x where it is not bf16 already, as bf16 into the scratch memory.
    fn unpack(&self, (x, w): (DType, DType)) -> Option<Kernel> {
        let [_, m, n, k, _] = self.sizes;
        let entry = match w {
            DType::Q4_0 => "q4_0",
            DType::Q8_0 => "q8_0",
            DType::Q4_K => "q4_k",
            DType::Q6_K => "q6_k",
            DType::F8E4M3 => "f8e4m3",
            _ => "any",
        };
        let rows = if x == DType::BF16 { 0 } else { m };
        let elements = (rows + if self.spec("up").is_some() { 2 * n } else { n }) * k;
        let mut unpack = self.kernel("unpack", entry);
        (unpack.threads, unpack.blocks, unpack.scratch) = (256, elements.div_ceil(256 * 8), elements * 2);
        unpack.aligned = vec!["x", "w", "up"];
        (unpack.scratch <= MOST_UNPACKED).then_some(unpack)
    }

    /// Whether rows repeat, which those of a tensor map do not.
    fn repeats(&self, name: &str) -> bool {
        self.spec(name).is_some_and(|s| s.dim(1) > 1 && s.stride(1) == 0)
    }

    /// Tiles on Hopper's tensor cores.
    fn wide(&self, processors: usize) -> Option<Vec<Kernel>> {
        let [batch, m, n, k, groups] = self.sizes;
        let (x, w) = self.types()?;
        // Weights in blocks or of fp8, and x with them, become bf16 in the scratch memory.
        let bf16 = self.numerics == Numerics::Fast || self.exact_in_bf16();
        let other = w.is_quantized() && (x.is_float() || is_fp8(x)) || is_fp8(w) || is_fp8(x) && w.is_float();
        let fp8 = self.fast_fp8();
        let unpacked =
            if bf16 && other && !fp8 && groups == 0 && batch == 1 { Some(self.unpack((x, w))?) } else { None };
        let entry = match (x, w) {
            (DType::BF16, DType::BF16) => "bf16_wide",
            (DType::F16, DType::F16) => "f16_wide",
            (DType::F8E4M3, DType::F8E4M3) if fp8 => "fp8_wide",
            _ if unpacked.is_some() => "bf16_wide",
            _ => return None,
        };
        let rows = m.checked_div(groups).unwrap_or(m);
        let served = self.aligned(if fp8 { 16 } else { 8 })
            && n <= i32::MAX as usize
            && !["x", "w", "up"].into_iter().any(|name| self.repeats(name));
        // Blocks have a kernel of their own for some rows more.
        let few = if is_fp8(x) || is_fp8(w) { 16 } else { 64 };
        if rows <= few || self.w_scales == BLOCKS && unpacked.is_none() && !fp8 || !served {
            return None;
        }
        let gated = self.spec("up").is_some();
        let (down, steps) = (self.tiles_down(128), k.div_ceil(if fp8 { 128 } else { 64 }));
        let columns = |width: usize| if gated { width / 2 } else { width };
        let blocks = |&(width, shares): &(usize, usize)| down * n.div_ceil(columns(width)) * shares;
        // Nanoseconds, fitted to what was measured on an H200: of a step, of what follows the sums, of the shares' meeting.
        let time = |tile: &(usize, usize)| {
            let (width, shares) = *tile;
            let step = if fp8 { 260 + width * 27 / 10 } else { (30 + width * 237 / 100).max(205) };
            let meeting = if shares > 1 { 4000 + 8 * width } else { 0 };
            blocks(tile).div_ceil(processors) * (steps.div_ceil(shares) * step + 13 * width) + meeting
        };
        let possible = |tile: &(usize, usize)| {
            let meets = groups == 0 && steps >= 4 * tile.1 && tile.0 <= 128 && tile.0.is_multiple_of(32);
            tile.1 == 1 || meets && blocks(tile) <= room(processors, tile.1)
        };
        let parts = |w: usize| !fp8 || w.is_power_of_two();
        let widths = (2..=16_usize).rev().map(|w| w * 16).filter(|&w| parts(w) && (!gated || w.is_multiple_of(64)));
        let all = widths.flat_map(|w| [1, 2, 4].map(|shares| (w, shares)));
        let (width, shares) = all.filter(possible).min_by_key(time)?;
        let (tiles, stage) = (down * n.div_ceil(columns(width)), (128 + width) * 128 + 16);
        // Sums of the operands' type need no way through shared memory, but where rows may belong to no group.
        let stored = if entry == "f16_wide" { DType::F16 } else { DType::BF16 };
        let straight = self.direct() && groups == 0 && self.spec("out").is_some_and(|out| out.dtype() == stored);
        let staging = if straight || shares > 1 { 0 } else { 8 * 4096 };
        let depth = (SHARED - staging - 16) / stage;
        let mut kernel = self.kernel("gemm.sm_90a", entry);
        kernel.pair(u32::try_from(tiles).ok()?, width as u32);
        kernel.pair(depth as u32, shares as u32);
        let boxes = if gated { 32 } else { width as u32 };
        if let Some(unpack) = &unpacked {
            let weights = if gated { 2 * n } else { n };
            match x {
                DType::BF16 => kernel.map("x", 128),
                _ => kernel.map_scratch(weights * k * 2, [k, m], 128),
            }
            kernel.map_scratch(0, [k, n], boxes);
            kernel.map_scratch((weights - n) * k * 2, [k, n], 32);
            kernel.scratch = unpack.scratch;
        } else {
            kernel.map("x", 128);
            kernel.map("w", boxes);
            kernel.map("up", 32);
        }
        kernel.shared = depth * stage + 16 + staging;
        (kernel.threads, kernel.cluster) = (384, shares as u32);
        kernel.blocks = if shares > 1 { tiles * shares } else { tiles.min(processors) };
        (kernel.early, kernel.scratch_early) = (true, unpacked.is_some());
        kernel.aligned = vec!["x", "w", "up"];
        if self.direct() {
            kernel.aligned.push("out");
        }
        Some(unpacked.into_iter().chain([kernel]).collect())
    }

    /// Many rows of x by weights in blocks on Hopper's tensor cores, decoded on the way: x is made ready by a kernel before.
    fn many_rows_of_blocks(&self, processors: usize) -> Option<Vec<Kernel>> {
        let [batch, m, n, k, groups] = self.sizes;
        let (x, w) = self.types()?;
        let entries = match w {
            DType::Q4_0 => ["q4_0_blocks_64", "q4_0_blocks_128"],
            DType::Q8_0 => ["q8_0_blocks_64", "q8_0_blocks_128"],
            DType::Q4_K => ["q4_k_blocks_64", "q4_k_blocks_128"],
            _ => return None,
        };
        let gated = self.spec("up").is_some();
        let plain = batch == 1 && groups == 0 && self.w_scales == 0 && self.numerics == Numerics::Fast;
        let served = self.aligned(8)
            && k.is_multiple_of(256)
            && n <= i32::MAX as usize
            && !self.repeats("w")
            && !self.repeats("up");
        if m <= 16 || !plain || !served || !x.is_float() {
            return None;
        }
        let (elements, block) = w.block();
        let (rows, columns, bytes) =
            (if m > 64 { 128 } else { 64 }, if gated { 64 } else { 128 }, 256 / elements * block);
        let (tiles, chunks) = (m.div_ceil(rows) * n.div_ceil(columns), k / 256);
        let possible =
            |shares: &usize| *shares == 1 || chunks >= 2 * shares && tiles * shares <= room(processors, *shares);
        // In chunks of k, of which the shares' meeting takes about three.
        let time =
            |shares: &usize| (tiles * shares).div_ceil(processors) * chunks.div_ceil(*shares) + 3 * (shares - 1).min(1);
        let shares = [1, 2, 4].into_iter().filter(possible).min_by_key(time)?;
        let lines_depth = if bytes > 144 { 3 } else { 4 };
        let rows_depth = (SHARED - lines_depth * (128 * bytes + 16) - 16) / (rows * 128 + 16);
        let mut kernel = self.kernel("gemm_blocks.sm_90a", entries[usize::from(m > 64)]);
        kernel.pair(u32::try_from(tiles).ok()?, shares as u32);
        kernel.pair(rows_depth as u32, lines_depth as u32);
        kernel.pair(bytes as u32, 0);
        kernel.map_scratch(0, [k, m], rows as u32);
        kernel.map_stored("w", bytes, 64);
        kernel.map_stored("up", bytes, 64);
        kernel.shared = rows_depth * (rows * 128 + 16) + lines_depth * (128 * bytes + 16) + 16;
        kernel.scratch = m * k * 2;
        (kernel.threads, kernel.cluster, kernel.blocks) = (384, shares as u32, tiles * shares);
        (kernel.early, kernel.aligned) = (true, vec!["w", "up"]);
        let mut prepare = self.kernel("gemm_blocks.sm_90a", "prepare");
        (prepare.threads, prepare.blocks, prepare.aligned) = (256, (m * k / 32).div_ceil(256), vec!["x"]);
        Some(vec![prepare, kernel])
    }

    /// A kernel of tiles, and where few tiles share k among them, so that `blocks` of them fill the device, one that adds their sums.
    fn tiles(&self, choice: Choice, shared: usize, step: usize, blocks: usize) -> Vec<Kernel> {
        let [batch, m, n, k, groups] = self.sizes;
        let (height, width) = choice.tile;
        let mut main = self.kernel(choice.family, choice.entry);
        let tiles = self.tiles_down(height) * n.div_ceil(width);
        // Partial sums are f32, of one matrix; each block has at least 8 steps.
        let integers = matches!(self.types(), Some((DType::I8 | DType::U8, _)));
        let shares = batch == 1 && groups == 0 && self.spec("up").is_none() && !integers;
        let splits = if shares { (blocks / tiles).min(k.div_ceil(step) / 8).max(1) } else { 1 };
        main.shared = shared.max(height * 128 * 4);
        (main.threads, main.blocks, main.aligned) = (256, tiles * splits, vec!["x", "w", "up"]);
        if self.direct() {
            main.aligned.push("out");
        }
        if splits == 1 {
            return vec![main];
        }
        let mut sum = self.kernel("gemm", "sum_splits");
        (sum.threads, sum.blocks) = (256, (m * n).div_ceil(256));
        main.scratch = splits * m * n * 4;
        main.replace_word(SPLITS, splits);
        sum.replace_word(SPLITS, splits);
        vec![main, sum]
    }
}

/// Bytes of shared memory that a block may have on Hopper, but what the driver keeps.
const SHARED: usize = 226 << 10;

/// The word of `splits` in `Args`: behind ten tensors, two extents, m, n, k, groups and batch.
const SPLITS: usize = 10 * 8 + 7;

/// How many blocks of clusters of so many find room at once: not every multiprocessor has three others for one of four.
fn room(processors: usize, cluster: usize) -> usize {
    if cluster == 4 { processors * 3 / 4 } else { processors }
}

fn is_fp8(d: DType) -> bool {
    matches!(d, DType::F8E4M3 | DType::F8E5M2)
}

/// Whether rows are dense and begin at multiples of 16 bytes, if the operand does.
fn aligned_rows(s: &Spec) -> bool {
    let bytes = s.dtype().block().1;
    let row = |d: usize| s.dim(d) <= 1 || (s.stride(d) * bytes).is_multiple_of(16);
    (s.dim(0) <= 1 || s.stride(0) == 1) && (1..s.rank()).all(row)
}
