use std::sync::Arc;

use super::{
    driver::Device,
    kernel::{Compiled, Kernel, Sequence, in_pieces},
    module::Modules,
};
use crate::{
    backend::{Plan, Plans},
    dtype::DType,
    error::{Error, Result},
    layout::Spec,
    op::{Attention, Determinism, Features, Numerics, Op},
};

/// The longest head a block holds.
const MOST: usize = 256;
/// Rows of a block of the tiled kernels, and from how many on they are likely the faster ones.
const ROWS: usize = 64;
const FEW: usize = 16;

/// Heads of a key head that a block of the decoding kernel has.
const DECODE_HEADS: usize = 8;

/// Up to how many rows the keys of each are split among blocks, and the fewest that a block has.
const SPLIT_ROWS: usize = 256;
const SPLIT_KEYS: usize = 64;

pub(super) fn plans(op: &Op, o: &Attention, device: &Arc<Device>, modules: &Modules) -> Result<Plans> {
    op.require(Features::all())?;
    let by_row = by_row(op, o)?;
    // The same kernel for every number of rows, where a row's bits may not depend on its company.
    if op.determinism() >= Determinism::BatchInvariant {
        return Ok(vec![Arc::new(by_row.compile(device, modules, Determinism::BatchInvariant)?)]);
    }
    let compile = |kernel: Kernel| kernel.compile(device, modules, Determinism::ThreadCount);
    // The tensor cores that these are for came with compute capability 8.0.
    let ampere = |_: &Kernel| device.driver.capability() >= (8, 0);
    let processors = device.driver.processors();
    let tiled = tiled(op, o).filter(ampere).map(compile).transpose()?.map(Arc::new);
    // PTX for sm_90a loads on compute capability 9.0 alone.
    let hopper = device.driver.capability() == (9, 0);
    let wide = wide(op, o, processors).filter(|_| hopper).map(compile).transpose()?;
    let sequence = |kernel: Option<Compiled>, otherwise: &Option<Arc<Compiled>>| {
        let otherwise = otherwise.clone()?;
        Sequence::of(vec![kernel?], Some(otherwise))
    };
    let wide = sequence(wide, &tiled);
    let exact = exact(op, o).filter(|k| k.entry == "exact_64" || ampere(k)).map(compile).transpose()?;
    let split = split(op, o, processors).map(compile).transpose()?.map(Arc::new);
    let decode = decode(op, o, processors).filter(ampere).map(compile).transpose()?;
    let decode = sequence(decode, &split);
    let by_row = Some(Arc::new(compile(by_row)?));
    let [tiled, exact, by_row, split] =
        [tiled, exact.map(Arc::new), by_row, split].map(|kernel| kernel.map(|k| k as Arc<dyn Plan>));
    let order = match o.q.dim(2) >= FEW {
        true => [wide, tiled, exact, by_row, decode, split],
        false => [decode, split, by_row, wide, tiled, exact],
    };
    Ok(order.into_iter().flatten().collect())
}

fn by_row(op: &Op, o: &Attention) -> Result<Kernel> {
    let sizes = o.sizes();
    if sizes.d.max(sizes.dv) > MOST {
        return Err(Error::unsupported(op, format_args!("heads of {} are longer than {MOST}", sizes.d.max(sizes.dv))));
    }
    let mut kernel = kernel(op, o, "attention", "attention");
    let sequences = if o.q_offsets.is_some() { 1 } else { sizes.batch };
    kernel.blocks = if sizes.dv == 0 && o.lse.is_none() { 0 } else { sequences * sizes.q_len * sizes.heads };
    Ok(kernel)
}

/// The kernel on tensor cores, where it takes the operation.
fn tiled(op: &Op, o: &Attention) -> Option<Kernel> {
    let sizes = o.sizes();
    let padded = o.q_offsets.is_none() && o.block_table.is_none() && o.mask.is_none() && o.key_mask.is_none();
    let alike = [&o.q, &o.k, &o.v].iter().all(|s| s.dtype() == o.q.dtype() && whole(s));
    let entry = match (o.q.dtype(), o.numerics, sizes.d.max(sizes.dv)) {
        _ if !padded || !alike || !eights(sizes.d, sizes.dv) => return None,
        (DType::BF16, Numerics::Fast, ..=64) => "bf16_64_fast",
        (DType::BF16, Numerics::Fast, ..=128) => "bf16_128_fast",
        (DType::F16, Numerics::Fast, ..=64) => "f16_64_fast",
        (DType::F16, Numerics::Fast, ..=128) => "f16_128_fast",
        (DType::BF16, _, ..=64) => "bf16_64",
        (DType::BF16, _, ..=128) => "bf16_128",
        (DType::F16, _, ..=64) => "f16_64",
        (DType::F16, _, ..=128) => "f16_128",
        _ => return None,
    };
    let mut kernel = kernel(op, o, "attention_tiled", entry);
    kernel.blocks = sizes.batch * sizes.heads * sizes.q_len.div_ceil(ROWS);
    Some(kernel)
}

/// The kernel in f32, where it takes the operation.
fn exact(op: &Op, o: &Attention) -> Option<Kernel> {
    let sizes = o.sizes();
    let (entry, width) = match sizes.d.max(sizes.dv) {
        0..=64 => ("exact_64", 64),
        65..=128 => ("exact_128", 128),
        _ => return None,
    };
    let served = eights(sizes.d, sizes.dv) && whole(&o.k) && whole(&o.v) && o.q.dtype().is_float();
    if o.q_offsets.is_some() || !served {
        return None;
    }
    let mut kernel = kernel(op, o, "attention_exact", entry);
    kernel.blocks = sizes.batch * sizes.heads * sizes.q_len.div_ceil(ROWS);
    // q and keys with rows of 68, values behind the keys, and the weights.
    kernel.shared = (2 * width + ROWS) * (ROWS + 4) * 4;
    Some(kernel)
}

/// The kernel on Hopper's tensor cores, where it takes the operation; `tiled` serves it too.
fn wide(op: &Op, o: &Attention, processors: usize) -> Option<Kernel> {
    let (tiled, sizes) = (tiled(op, o)?, o.sizes());
    // As in the kernel: width of a head, keys of a tile, warpgroups that multiply.
    let (entry, width, keys, groups) = match tiled.entry {
        "bf16_64_fast" => ("wide_64_bf16", 64, 96, 3),
        "bf16_128_fast" => ("wide_128_bf16", 128, 128, 2),
        "f16_64_fast" => ("wide_64_f16", 64, 96, 3),
        "f16_128_fast" => ("wide_128_f16", 128, 128, 2),
        _ => return None,
    };
    let (rows, stages) = (groups * 64, 2);
    // Nothing is repeated along a dimension, which copies by a map do not do.
    let mapped = [&o.q, &o.k, &o.v].iter().all(|s| (1..4).all(|d| s.dim(d) <= 1 || s.stride(d) > 0));
    let counted = sizes.capacity.max(sizes.q_len) < 1 << 30 && sizes.batch * sizes.capacity * sizes.dv > 0;
    if sizes.q_len <= 64 || !mapped || !counted || o.out.dtype() != o.q.dtype() || !whole(&o.out) {
        return None;
    }
    let mut kernel = kernel(op, o, "attention.sm_90a", entry);
    for (name, rows) in [("q", rows), ("k", keys), ("v", keys)] {
        kernel.map_as(name, rows as u32, [0, 2, 1, 3]);
    }
    kernel.shared = (rows + 2 * stages * keys) * width * 2 + 16 + stages * 32 + 2 * 36;
    kernel.aligned = vec!["q", "k", "v", "out"];
    // Blocks that stay.
    kernel.blocks = (sizes.batch * sizes.heads * sizes.q_len.div_ceil(rows)).min(processors);
    kernel.threads = (groups + 1) as u32 * 128;
    Some(kernel)
}

/// The kernel that splits the keys among blocks and multiplies on tensor cores, where it takes the operation; `split` serves it too.
fn decode(op: &Op, o: &Attention, processors: usize) -> Option<Kernel> {
    let (split, sizes) = (split(op, o, processors)?, o.sizes());
    let (entries, block) = match (o.k.dtype(), o.v.dtype()) {
        (DType::BF16, DType::BF16) => (["decode_64_bf16", "decode_128_bf16"], false),
        (DType::F16, DType::F16) => (["decode_64_f16", "decode_128_f16"], false),
        (DType::Q8_0, DType::Q8_0) => (["decode_64_q8_0", "decode_128_q8_0"], true),
        _ => return None,
    };
    let (entry, width) = match split.entry {
        "split_64_1" | "split_64_4" => (entries[0], 64),
        "split_128_1" | "split_128_4" => (entries[1], 128),
        _ => return None,
    };
    // Rows of blocks begin where the pieces do that are copied at once.
    let pieces = |s: &Spec| (1..4).all(|d| s.dim(d) <= 1 || s.stride(d).is_multiple_of(width));
    if block && (sizes.d, sizes.dv, pieces(&o.k), pieces(&o.v)) != (width, width, true, true) {
        return None;
    }
    let rows = if o.q_offsets.is_some() { sizes.q_len } else { sizes.batch * sizes.q_len };
    let packs = sizes.kv_heads * (sizes.heads / sizes.kv_heads).div_ceil(DECODE_HEADS);
    let mut kernel = kernel(op, o, "attention_decode", entry);
    // A block for each processor, as far as there are keys.
    let splits = (processors / (rows * packs)).min(sizes.capacity / SPLIT_KEYS).max(1);
    splits_of(&mut kernel, rows, packs, splits, sizes.heads * (2 + width));
    // Eight warps with three steps each of 16 keys and values.
    kernel.shared = 8 * 3 * 2 * 16 * if block { width / 32 * 34 } else { width * 2 };
    (kernel.threads, kernel.aligned) = (256, vec!["k", "v"]);
    Some(kernel)
}

/// The kernel that splits the keys among blocks, where it takes the operation.
fn split(op: &Op, o: &Attention, processors: usize) -> Option<Kernel> {
    let sizes = o.sizes();
    let rows = if o.q_offsets.is_some() { sizes.q_len } else { sizes.batch * sizes.q_len };
    if rows > SPLIT_ROWS || !eights(sizes.d, sizes.dv) || !whole(&o.k) || !whole(&o.v) || rows * sizes.heads == 0 {
        return None;
    }
    let group = sizes.heads / sizes.kv_heads;
    let (entry, width, together) = match (sizes.d.max(sizes.dv), group) {
        (..=64, 1) => ("split_64_1", 64, 1),
        (..=64, _) => ("split_64_4", 64, 4),
        (..=128, 1) => ("split_128_1", 128, 1),
        (..=128, _) => ("split_128_4", 128, 4),
        (..=256, 1) => ("split_256_1", 256, 1),
        (..=256, _) => ("split_256_2", 256, 2),
        _ => return None,
    };
    let mut kernel = kernel(op, o, "attention_split", entry);
    let packs = sizes.kv_heads * group.div_ceil(together);
    // Two blocks for each processor, as far as there are keys.
    let splits = (2 * processors).div_ceil(rows * packs).min(sizes.capacity / SPLIT_KEYS).max(1);
    splits_of(&mut kernel, rows, packs, splits, sizes.heads * (2 + width));
    Some(kernel)
}

/// `SplitArgs` of kernels/common/split.cuh behind the `AttentionArgs`; `values`: of a row.
fn splits_of(kernel: &mut Kernel, rows: usize, packs: usize, splits: usize, values: usize) {
    kernel.scratch_address();
    kernel.scratch = rows * splits * values * 4;
    kernel.table(vec![0; (rows * packs).div_ceil(2)]);
    [splits, packs].into_iter().for_each(|v| kernel.word(v));
    kernel.blocks = rows * packs * splits;
}

/// Whether heads are dense and begin eight elements apart, if the operand does.
fn whole(s: &Spec) -> bool {
    in_pieces(s, 8)
}

/// Whether heads are made of eights.
fn eights(d: usize, dv: usize) -> bool {
    d > 0 && dv > 0 && d.is_multiple_of(8) && dv.is_multiple_of(8)
}

/// `AttentionArgs` of kernels/common/attention.cuh.
fn kernel(op: &Op, o: &Attention, family: &'static str, entry: &'static str) -> Kernel {
    let sizes = o.sizes();
    let mut kernel = Kernel::new(op, family, entry);
    for name in ["q", "k", "v", "out", "mask", "alibi", "sinks", "lse"] {
        kernel.tensor(name);
    }
    for name in ["q_len", "kv_len", "q_offsets", "kv_offsets", "block_table", "key_mask"] {
        kernel.tensor(name);
    }
    let group = sizes.heads / sizes.kv_heads.max(1);
    let window = o.window.min(1 << 40);
    for value in [sizes.q_len, sizes.heads, group, sizes.batch, sizes.capacity, sizes.d, sizes.dv] {
        kernel.word(value);
    }
    [o.k.dim(2).max(1), o.k.dim(3), window].into_iter().for_each(|v| kernel.word(v));
    kernel.pair(u32::from(o.causal), o.score_scale().to_bits());
    kernel.pair(o.softcap.get().to_bits(), 0);
    kernel.threads = 128;
    kernel
}
