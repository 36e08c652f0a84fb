//! Rows of a table, of any dtype or packed in panels, one task a row.

use std::sync::Arc;

use super::{
    Device,
    decode::decode_strided,
    kernel::{Args, Kernel, Tensor},
    matmul::{BLOCK, PANEL, Way, packed, slice},
    pool::Pool,
    simd::{Simd, row, simd},
};
use crate::{
    backend::Plans,
    dtype::DType,
    error::Result,
    op::{Determinism, Features, Gather},
};

/// Elements decoded at once: whole blocks of every format.
const STRETCH: usize = BLOCK;

pub(super) fn plan(device: &Arc<Device>, op: &Gather) -> Result<Plans> {
    let mut plans = kernel(device, op, Way::Plain)?;
    let pairs = device.isa.pairs() && op.table.dtype() == DType::BF16;
    for way in [Way::Panel, Way::PairsPanel].into_iter().take(1 + usize::from(pairs)) {
        if way.packing(&op.table).is_some() {
            plans.extend(kernel(device, op, way)?);
        }
    }
    Ok(plans)
}

/// Of a table as products read it.
fn kernel(device: &Arc<Device>, op: &Gather, way: Way) -> Result<Plans> {
    let op = *op;
    let (rows, n, isa) = (op.table.dim(1), op.index.dim(0), device.isa);
    let name = format_args!("gather-{}-{}-{}", op.table.dtype(), op.out.dtype(), way.name());
    let known = Features::STRIDED | Features::BROADCAST | Features::SCALE;
    let mut kernel = Kernel::new(device, op, name, known)?.determinism(Determinism::BatchInvariant);
    if let Some(packing) = way.packing(&op.table).filter(|_| way.is_packed()) {
        kernel = kernel.packing(0, packing, move |rows, plain, packed, pool| way.pack(isa, rows, plain, packed, pool));
    }
    kernel.plan(move |args: &Args, pool: &mut Pool| {
        let (table, index, out) = (args.of("table"), args.of("index"), args.of("out"));
        pool.run(n, |i, _| {
            // SAFETY: the index has n elements.
            let row = unsafe { *index.at::<i32>(0, i) };
            let row = usize::try_from(row).ok().filter(|&r| r < rows);
            // SAFETY: the row exists, and row i of the output is this task's.
            simd!(args.isa, s => unsafe { one_row(s, op.scale.get(), table, way, row, out, i) });
        });
    })
}

/// The row, or zeros where there is none.
#[inline(always)]
unsafe fn one_row<S: Simd>(s: S, scale: f32, table: Tensor, way: Way, row: Option<usize>, out: Tensor, i: usize) {
    let (d, dtype) = (table.spec.dim(0), table.dtype());
    let mut values = [0f32; STRETCH];
    let values = values.as_mut_ptr();
    for at in (0..d).step_by(STRETCH) {
        let n = STRETCH.min(d - at);
        // SAFETY: columns at .. at + n exist; the buffer holds STRETCH.
        unsafe {
            if let Some(row) = row {
                let (first, r, bytes) = (row / PANEL * PANEL, row % PANEL, dtype.block().1);
                let width = PANEL.min(table.rows() - first);
                match way.packed_length(dtype, d) {
                    Some(length) if way == Way::PairsPanel || dtype == DType::I8 => {
                        // A word of each row of a panel in turn: four bytes, or two bf16.
                        let from = table.pointer::<u8>().add(first * length * bytes);
                        for p in 0..n {
                            let (word, byte) = ((at + p) * bytes / 4, (at + p) * bytes % 4);
                            let from = from.add(packed::<S>((length * bytes / 4, width), word, r) * 4 + byte);
                            *values.add(p) = match way {
                                Way::PairsPanel => f32::from_bits((*from.cast::<u16>() as u32) << 16),
                                _ => *from.cast::<i8>() as f32,
                            };
                        }
                    }
                    Some(length) => {
                        let element = first * length + packed::<S>((length, width), at, r);
                        let stride = if width == PANEL { slice::<S>() } else { width };
                        decode_strided(s, dtype, table.pointer::<u8>().add(element * bytes), stride, values, n);
                    }
                    None => decode_strided(s, dtype, table.at::<u8>(row, at), table.spec.stride(0), values, n),
                }
                if scale != 1.0 {
                    let scale = s.splat(scale);
                    for v in (0..n).step_by(S::LANES) {
                        s.store(values.add(v), s.mul(s.load(values.add(v)), scale));
                    }
                }
            }
            row::write(s, out.dtype(), values, out.at(i, at), out.spec.stride(0), n);
        }
    }
}
