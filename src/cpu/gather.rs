//! Rows of a table, of any dtype or packed in panels, one task a row.

use std::sync::Arc;

use super::{
    Device,
    decode::decode_strided,
    kernel::{Args, Kernel, Tensor},
    matmul::{PANEL, pack, packed_length, packing},
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
const STRETCH: usize = 512;

pub(super) fn plan(device: &Arc<Device>, op: &Gather) -> Result<Plans> {
    let mut plans = kernel(device, op, false)?;
    if packing(&op.table).is_some() {
        plans.extend(kernel(device, op, true)?);
    }
    Ok(plans)
}

fn kernel(device: &Arc<Device>, op: &Gather, packed: bool) -> Result<Plans> {
    let op = *op;
    let (rows, n, isa) = (op.table.dim(1), op.index.dim(0), device.isa);
    let way = if packed { "panel" } else { "plain" };
    let name = format_args!("gather-{}-{}-{way}", op.table.dtype(), op.out.dtype());
    let known = Features::STRIDED | Features::BROADCAST | Features::SCALE;
    let mut kernel = Kernel::new(device, op, name, known)?.determinism(Determinism::BatchInvariant);
    if let Some(packing) = packing(&op.table).filter(|_| packed) {
        kernel = kernel.packing(0, packing, move |rows, plain, packed, pool| pack(isa, rows, plain, packed, pool));
    }
    kernel.plan(move |args: &Args, pool: &mut Pool| {
        let (table, index, out) = (args.of("table"), args.of("index"), args.of("out"));
        pool.run(n, |i, _| {
            // SAFETY: the index has n elements.
            let row = unsafe { *index.at::<i32>(0, i) };
            let row = usize::try_from(row).ok().filter(|&r| r < rows);
            // SAFETY: the row exists, and row i of the output is this task's.
            simd!(args.isa, s => unsafe { one_row(s, op.scale.get(), table, packed, row, out, i) });
        });
    })
}

/// The row, or zeros where there is none.
#[inline(always)]
unsafe fn one_row<S: Simd>(s: S, scale: f32, table: Tensor, packed: bool, row: Option<usize>, out: Tensor, i: usize) {
    let (d, dtype) = (table.spec.dim(0), table.dtype());
    let mut values = [0f32; STRETCH];
    let values = values.as_mut_ptr();
    for at in (0..d).step_by(STRETCH) {
        let n = STRETCH.min(d - at);
        // SAFETY: columns at .. at + n exist; the buffer holds STRETCH.
        unsafe {
            if let Some(row) = row {
                let first = row / PANEL * PANEL;
                let width = PANEL.min(table.rows() - first);
                if packed && dtype == DType::I8 {
                    // Four bytes of each row of a panel in turn.
                    let from = table.pointer::<i8>().add(first * packed_length(dtype, d) + (row - first) * 4);
                    (0..n).for_each(|p| *values.add(p) = *from.add((at + p) / 4 * width * 4 + (at + p) % 4) as f32);
                } else if packed {
                    let element = first * d + at * width + row - first;
                    let from = table.pointer::<u8>().add(element * dtype.block().1);
                    decode_strided(s, dtype, from, width, values, n);
                } else {
                    decode_strided(s, dtype, table.at::<u8>(row, at), table.spec.stride(0), values, n);
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
