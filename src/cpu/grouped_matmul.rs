//! A loop over the groups, each a product like any other; groups of few rows read plain weights row by row.

use std::sync::Arc;

use super::{
    Device,
    kernel::{Args, Kernel, Tensor},
    matmul::{Epilogue, Job, MOST_ROWS, Product, ROWS, Sum, Way, Weight, packing, pair_ways, rounds},
    pool::Pool,
    simd::{row, simd},
};
use crate::{
    backend::Plans,
    error::Result,
    op::{Determinism, Features, GroupedMatmul, Numerics},
};

pub(super) fn plan(device: &Arc<Device>, op: &GroupedMatmul) -> Result<Plans> {
    let mut plans = Plans::new();
    let mut weights = [&op.w].into_iter().chain(&op.up);
    for way in pair_ways(device, op.x.dtype(), weights.clone()) {
        plans.extend(kernel(device, op, way)?);
    }
    if weights.clone().all(|w| packing(w).is_some()) {
        plans.extend(kernel(device, op, Way::Panel)?);
    }
    if op.numerics == Numerics::Fast && weights.all(rounds) && device.isa.dots() {
        plans.extend(kernel(device, op, Way::Int8)?);
    }
    plans.extend(kernel(device, op, Way::Plain)?);
    Ok(plans)
}

fn kernel(device: &Arc<Device>, op: &GroupedMatmul, way: Way) -> Result<Plans> {
    let op = *op;
    let (rows, groups, n, k) = op.dims();
    let new = |way, m: usize| Product::new(device.isa, device.info.threads, way, (m, n, k), op.up.is_some());
    let (by_rows, limit) = match way {
        Way::Int8 => (Way::Int8Rows, MOST_ROWS),
        _ => (Way::Rows, ROWS),
    };
    let (many, few) = (new(way, rows), new(by_rows, limit.min(rows)));
    let may_mix = !way.is_packed() && op.determinism <= Determinism::ThreadCount;
    let known = Features::STRIDED
        | Features::BROADCAST
        | Features::BATCH
        | Features::ACTIVATION
        | Features::GATED
        | Features::SCALES;
    let name = format_args!("grouped_matmul-{}-{}-{}", op.x.dtype(), op.w.dtype(), way.name());
    let mut kernel = Kernel::new(device, op, name, known)?
        .scratch(many.scratch().max(few.scratch()))
        .determinism(if may_mix { Determinism::ThreadCount } else { Determinism::BatchInvariant });
    if way.is_packed() {
        let isa = device.isa;
        for (i, o) in op.operands().iter().enumerate().filter(|(_, o)| matches!(o.name, "w" | "up")) {
            if let Some(packing) = way.packing(&o.spec) {
                kernel = kernel
                    .packing(i, packing, move |rows, plain, packed, pool| way.pack(isa, rows, plain, packed, pool));
            }
        }
    }
    kernel.plan(move |args: &Args, pool: &mut Pool| {
        let (x, out, offsets) = (args.of("x"), args.of("out"), args.of("offsets"));
        // SAFETY: offsets has groups + 1 elements.
        let offset =
            |g: usize| unsafe { *offsets.at::<i32>(0, g) }.clamp(0, rows.min(i32::MAX as usize) as i32) as usize;
        let mut begin = offset(0);
        zeros(args, out, 0, if groups == 0 { rows } else { begin });
        for g in 0..groups {
            let end = offset(g + 1).max(begin);
            let weight = |name: &str| {
                let tensor = args.get(name)?;
                let packed = way.packed_length(tensor.dtype(), k);
                let offset = packed.map_or(g * tensor.spec.stride(2), |length| g * n * length);
                Some(Weight { tensor, offset, packed, scales: None })
            };
            let Some(w) = weight("w") else { return };
            let epilogue = Epilogue {
                sum: Sum::Float,
                x_scale: None,
                w_scale: None,
                bias: None,
                act: op.act,
                scale: 1.0,
                row_scale: args.get("row_scale"),
                residual: None,
                out,
            };
            let job = Job { x, first: begin, rows: end - begin, w, up: weight("up"), epilogue };
            if may_mix && job.rows <= limit {
                few.run(args, pool, by_rows, &job);
            } else {
                many.run(args, pool, way, &job);
            }
            begin = end;
        }
        if groups > 0 {
            zeros(args, out, begin, rows);
        }
    })
}

/// Rows that are in no group.
fn zeros(args: &Args, out: Tensor, from: usize, to: usize) {
    let (n, zeros) = (out.spec.dim(0), [0f32; 256]);
    for (i, j) in (from..to).flat_map(|i| (0..n).step_by(256).map(move |j| (i, j))) {
        let to = out.at::<u8>(i, j);
        // SAFETY: the row and the columns exist; nobody else writes the output now.
        simd!(args.isa, s => unsafe {
            row::write(s, out.dtype(), zeros.as_ptr(), to, out.spec.stride(0), (n - j).min(256));
        });
    }
}
