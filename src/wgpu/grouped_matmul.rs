use super::{
    Kernel, activation,
    matmul::{TILES, vectors},
    require_dtypes,
};
use crate::{
    dtype::DType,
    error::{Error, Result},
    op::{Determinism, Features, GroupedMatmul, Op},
};

pub(super) fn kernels(op: &Op, o: &GroupedMatmul) -> Result<Vec<Kernel>> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    if o.w.dtype() == DType::I8 {
        return Err(Error::unsupported(op, "no shader multiplies floats by 8-bit integers"));
    }
    let (rows, groups, ..) = o.dims();
    // A row per expert and less: nothing to share.
    let few = rows <= groups.max(4) && op.determinism() < Determinism::BatchInvariant;
    Ok(vec![if few { gemv(op, o) } else { tiled(op, o) }])
}

fn kernel(op: &Op, o: &GroupedMatmul) -> Kernel {
    let (rows, groups, n, k) = o.dims();
    let mut kernel = Kernel::new(op, "matmul", &[groups], 2);
    for name in ["x", "out"] {
        let s = if name == "x" { &o.x } else { &o.out };
        kernel.strides(name, &[0], &[s.stride(0), s.stride(1)]);
    }
    kernel.strides("offsets", &[0], &[o.offsets.stride(0), 0]);
    if let Some(s) = &o.row_scale {
        kernel.strides("row_scale", &[0], &[s.stride(0), 0]);
    }
    kernel.code(activation(o.act));
    kernel.flag("grouped", true);
    vectors(&mut kernel, &o.x, &o.w);
    for (name, value) in [("m", rows), ("n", n), ("k", k), ("experts", groups)] {
        kernel.whole(name, value);
    }
    kernel.real("scale", 1.0);
    kernel
}

fn gemv(op: &Op, o: &GroupedMatmul) -> Kernel {
    let (rows, _, n, _) = o.dims();
    let mut kernel = kernel(op, o);
    kernel.variant = "gemv";
    kernel.flag("gemv", true);
    kernel.flag("reduce", true);
    kernel.constant("ROWS", 1);
    kernel.groups = rows * n;
    kernel
}

fn tiled(op: &Op, o: &GroupedMatmul) -> Kernel {
    let (rows, groups, n, _) = o.dims();
    let tile = TILES[if rows / groups.max(1) > 32 { 1 } else { 2 }];
    let mut kernel = kernel(op, o);
    tile.set(&mut kernel);
    let across = n.div_ceil(tile.columns());
    kernel.whole("tiles_n", across);
    // A tile more for each expert's last rows, and for the rows before the first expert's and behind the last one's.
    kernel.groups = if rows == 0 { 0 } else { (rows.div_ceil(tile.rows()) + groups + 2) * across };
    kernel
}
