//! Matrix products: x, converted to f32 once, times panels of the weight, which are read as packed at load or decoded on the
//! way; tasks are blocks of columns (and of rows, where columns are few), so that each panel is decoded once.
//!
//! ```text
//! scratch: | x in f32: [blocks of k][strips][BLOCK / 16][height][16] | per thread: panel [PANEL / slice][BLOCK][slice], sums [rows][COLUMNS], and those of `up` |
//! ```
//!
//! Nine kernels: `panel` reads weights packed in panels, for any number of rows; `plain` makes panels from any weight; [`words`] has both for
//! bytes by bytes with sums in i32, and for bf16 by bf16; `rows` is for few rows, dot by dot; [`int8`] (with AVX2 [`int8_runs`]) and [`int8_rows`] are
//! for quantized weights and i8 under `Numerics::Fast`.
//!
//! Traffic: the weight comes once from memory for every chunk of rows of x ([`product`]), and what the next panel needs is asked for while
//! this one is multiplied ([`tile`]); x comes from the second cache; what is complete is finished strip by strip, so that its stores overlap the
//! arithmetic of the next.
//!
//! Measured with one thread of a Xeon (model 207, AVX-512) of which other tenants use the other thread, the best of many turns, of 179 GFLOP/s and
//! 720 GOP/s that multiply-adds and dot products reach: f32 at 256 cubed 155, at 1024 cubed 151 (plain 141), 512 rows by 4096 squared 228
//! of two threads' 350; bf16 at 1024 cubed 148; u8 by i8 at 1024 cubed 667 (plain 629), 8 rows by 4096 squared
//! 12 to 14 GB/s, all that memory gives. 256 cubed: the loop is 92 % of the time, cutting x into strips 4.5.
//! Tried and lost: finishing row by row, each found anew in the output: its division alone took 5 % of 1024 cubed; sums kept in scratch
//! memory and copied to an output that needs nothing else: 9 % of 256 cubed.
//!
//! A gated pair in one pass in place of two products and an elementwise operation, Zen 3, bf16: one row by twice 8192 x 2048 3.59 to 3.22 ms, 512 rows by twice
//! 2048 x 1024 30.7 to 29.9.
//!
//! All ways but those by rows add up in one order whatever the shape ([`tile`]): batch-invariant.

mod epilogue;
mod format;
mod int8;
mod int8_rows;
mod int8_runs;
mod product;
mod rows;
mod tile;
mod way;
mod weight;
mod words;

use std::sync::Arc;

pub(super) use self::{
    epilogue::{Epilogue, Sum},
    int8_rows::MOST_ROWS,
    product::{Job, Product},
    rows::ROWS,
    tile::{BLOCK, PANEL, packed, slice},
    way::Way,
    weight::{Weight, packing},
};
use super::{
    Device,
    kernel::{Args, Kernel},
    pool::Pool,
};
use crate::{
    backend::Plans,
    dtype::DType,
    error::Result,
    layout::Spec,
    op::{Features, Matmul, Numerics},
};

pub(super) fn plan(device: &Arc<Device>, op: &Matmul) -> Result<Plans> {
    let (_, m, _, _) = op.dims();
    let mut plans = Plans::new();
    let all = |f: fn(&Spec) -> bool| [&op.w].into_iter().chain(&op.up).all(f);
    let packs = all(|w| packing(w).is_some());
    if is_integer(op) {
        if packs {
            plans.extend(kernel(device, op, Way::BytesPanel)?);
        }
        plans.extend(kernel(device, op, Way::BytesPlain)?);
        return Ok(plans);
    }
    if !has_block_scales(op) {
        for way in pair_ways(device, op.x.dtype(), [&op.w].into_iter().chain(&op.up)) {
            plans.extend(kernel(device, op, way)?);
        }
    }
    if packs && (!has_block_scales(op) || op.w.dtype() == DType::I8) {
        plans.extend(kernel(device, op, Way::Panel)?);
    }
    if m <= ROWS && op.determinism <= Way::Rows.determinism() {
        plans.extend(kernel(device, op, Way::Rows)?);
    }
    plans.extend(kernel(device, op, Way::Plain)?);
    if op.numerics == Numerics::Fast && device.isa.dots() && all(rounds) && !has_block_scales(op) {
        let few = m <= MOST_ROWS && op.determinism <= Way::Int8Rows.determinism();
        // Rounding a panel takes as long as multiplying it with some ten rows.
        let at = if m > 5 { 0 } else { plans.len() };
        plans.splice(at..at, kernel(device, op, Way::Int8)?);
        if few {
            plans.splice(0..0, kernel(device, op, Way::Int8Rows)?);
        }
    }
    Ok(plans)
}

/// True for weights that are rounded to 8 bits, or are of 8 bits, under `Numerics::Fast`.
pub(super) fn rounds(w: &Spec) -> bool {
    w.dtype().is_quantized() || w.dtype() == DType::I8 && w.stride(0) == 1
}

/// True for sums in i32. Scales of blocks of k come before the sum, which is then one of f32.
fn is_integer(op: &Matmul) -> bool {
    matches!(op.x.dtype(), DType::I8 | DType::U8) && !has_block_scales(op)
}

fn has_block_scales(op: &Matmul) -> bool {
    op.w_scale.is_some_and(|s| s.rank() == 2)
}

/// The ways to multiply pairs of bf16 by these weights.
pub(super) fn pair_ways<'a>(
    device: &Device,
    x: DType,
    weights: impl Iterator<Item = &'a Spec> + Clone,
) -> impl Iterator<Item = Way> {
    let all = device.isa.pairs() && x == DType::BF16 && weights.clone().all(|w| w.dtype() == DType::BF16);
    let packs = all && weights.clone().all(|w| Way::PairsPanel.packing(w).is_some());
    packs.then_some(Way::PairsPanel).into_iter().chain(all.then_some(Way::PairsPlain))
}

fn kernel(device: &Arc<Device>, op: &Matmul, way: Way) -> Result<Plans> {
    let op = *op;
    let (batch, m, n, k) = op.dims();
    let product = Product::new(device.isa, device.info.threads, way, (m, n, k), op.up.is_some());
    let known = Features::STRIDED
        | Features::BATCH
        | Features::BROADCAST
        | Features::BIAS
        | Features::ACTIVATION
        | Features::GATED
        | Features::RESIDUAL
        | Features::SCALE
        | Features::SCALES;
    let name = format_args!("matmul-{}-{}-{}", op.x.dtype(), op.w.dtype(), way.name());
    let mut kernel = Kernel::new(device, op, name, known)?.scratch(product.scratch()).determinism(way.determinism());
    if way.is_packed() {
        let isa = device.isa;
        for (i, o) in op.operands().iter().enumerate().filter(|(_, o)| matches!(o.name, "w" | "up")) {
            if let Some(packing) = way.packing(&o.spec) {
                kernel = kernel
                    .packing(i, packing, move |rows, plain, packed, pool| way.pack(isa, rows, plain, packed, pool));
            }
        }
    }
    let block_scales = has_block_scales(&op);
    let integer = is_integer(&op);
    kernel.plan(move |args: &Args, pool: &mut Pool| {
        let w_scale = args.get("w_scale");
        for b in 0..batch {
            let weight = |name: &str| {
                let tensor = args.get(name)?;
                let dense = tensor.spec.dense();
                let packed = way.packed_length(tensor.dtype(), k);
                let offset = Matmul::batch_offset(&op.out, if packed.is_some() { &dense } else { tensor.spec }, b);
                let offset = packed.map_or(offset, |length| offset / k.max(1) * length);
                let scales = w_scale.filter(|_| block_scales);
                Some(Weight { tensor, offset, packed, scales })
            };
            let Some(w) = weight("w") else { return };
            let epilogue = Epilogue {
                sum: if integer { Sum::Integer } else { Sum::Float },
                x_scale: args.get("x_scale"),
                w_scale: w_scale.filter(|_| !block_scales),
                bias: args.get("bias"),
                act: op.act,
                scale: op.scale.get(),
                row_scale: None,
                residual: args.get("residual"),
                out: args.of("out"),
            };
            let job = Job { x: args.of("x"), first: b * m, rows: m, w, up: weight("up"), epilogue };
            product.run(args, pool, way, &job);
        }
    })
}
