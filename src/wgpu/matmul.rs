use super::{Kernel, activation, adapter::Abilities, require_dtypes};
use crate::{
    dtype::DType,
    error::Result,
    layout::Spec,
    op::{Determinism, Features, Matmul, Op},
};

/// Up to this many rows a workgroup sums one column's outputs; beyond, tiles share their operands.
pub(super) const GEMV_ROWS: usize = 8;

/// How `matmul.wgsl` divides the work: `rows x columns` outputs per thread, `across x down` threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub name: &'static str,
    pub rows: usize,
    pub columns: usize,
    pub down: usize,
    pub across: usize,
}

/// Rows and columns of a workgroup: 64 x 64 by 64 threads, or by 256 with a quarter of the registers; 16 x 128 for few rows.
pub(super) const TILES: [Tile; 3] = [
    Tile { name: "tiled8", rows: 8, columns: 8, down: 8, across: 8 },
    Tile { name: "tiled", rows: 4, columns: 4, down: 16, across: 16 },
    Tile { name: "flat", rows: 4, columns: 8, down: 4, across: 16 },
];

impl Tile {
    pub(super) fn rows(&self) -> usize {
        self.rows * self.down
    }

    pub(super) fn columns(&self) -> usize {
        self.columns * self.across
    }

    pub(super) fn set(&self, kernel: &mut Kernel) {
        kernel.variant = self.name;
        kernel.flag("tiled", true);
        for (name, value) in
            [("ROWS", self.rows), ("COLUMNS", self.columns), ("DOWN", self.down), ("ACROSS", self.across)]
        {
            kernel.constant(name, value);
        }
    }
}

pub(super) fn kernels(op: &Op, o: &Matmul, able: &Abilities) -> Result<Vec<Kernel>> {
    op.require(Features::all())?;
    require_dtypes(op)?;
    let (_, m, ..) = o.dims();
    let integer = matches!(o.x.dtype(), DType::I8 | DType::U8);
    // The same kernel for every number of rows, where a row's bits may not depend on its company.
    let invariant = op.determinism() >= Determinism::BatchInvariant;
    let mut kernels = match m {
        _ if integer => vec![element(op, o)],
        0..=GEMV_ROWS if !invariant => vec![gemv(op, o)],
        _ if invariant => vec![tiled(op, o, TILES[1])],
        0..=32 => vec![tiled(op, o, TILES[2])],
        33..=63 => vec![tiled(op, o, TILES[1])],
        _ => vec![tiled(op, o, TILES[0]), tiled(op, o, TILES[1])],
    };
    if able.cooperative > 0 && m > GEMV_ROWS && !invariant && halves(o) {
        kernels.insert(0, cooperative(op, o, able));
    }
    Ok(kernels)
}

/// Products of f16, which cooperative matrices compute as exactly as any: in f32.
fn halves(o: &Matmul) -> bool {
    (o.x.dtype(), o.w.dtype()) == (DType::F16, DType::F16) && o.up.is_none() && o.w_scale.is_none()
}

fn kernel(op: &Op, o: &Matmul) -> Kernel {
    let (_, m, n, k) = o.dims();
    let mut kernel = Kernel::new(op, "matmul", &o.out.shape()[..o.out.rank() - 2], 2);
    kernel.code(activation(o.act));
    scales(&mut kernel, o.w_scale.as_ref(), n);
    kernel.whole("m", m);
    kernel.whole("n", n);
    kernel.whole("k", k);
    kernel.real("scale", o.scale.get());
    kernel
}

/// How the scales of the weight's channels, blocks or whole are read.
fn scales(kernel: &mut Kernel, w_scale: Option<&Spec>, n: usize) {
    let Some(s) = w_scale else { return };
    kernel.flag("block_scale", s.rank() == 2);
    kernel.flag("channel_scale", s.rank() == 1);
    let stride = if s.rank() == 1 && s.dim(0) == 1 && n > 1 { 0 } else { s.stride(0) };
    kernel.strides("w_scale", &[], &[stride, if s.rank() == 2 { s.stride(1) } else { 0 }]);
}

/// Which operands can be read four elements at a time along k.
pub(super) fn vectors(kernel: &mut Kernel, x: &Spec, w: &Spec) {
    let packed = |s: &Spec| (s.dtype().is_float() && s.stride(0) == 1) || s.dtype().is_quantized();
    kernel.flag("load4", true);
    kernel.flag("x_packed", packed(x));
    kernel.flag("w_packed", packed(w));
}

fn element(op: &Op, o: &Matmul) -> Kernel {
    let (batch, m, n, _) = o.dims();
    let mut kernel = kernel(op, o);
    kernel.variant = "element";
    kernel.flag("element", true);
    kernel.flag("whole", o.out.dtype() == DType::I32);
    kernel.elements(batch * m * n);
    kernel.collapse();
    kernel
}

fn gemv(op: &Op, o: &Matmul) -> Kernel {
    let (batch, m, n, _) = o.dims();
    let mut kernel = kernel(op, o);
    kernel.variant = "gemv";
    kernel.flag("gemv", true);
    kernel.flag("reduce", true);
    kernel.constant("ROWS", [1, 2, 4, 8].into_iter().find(|&r| r >= m).unwrap_or(8));
    vectors(&mut kernel, &o.x, &o.w);
    kernel.groups = if m == 0 { 0 } else { batch * n };
    kernel.collapse();
    kernel
}

fn cooperative(op: &Op, o: &Matmul, able: &Abilities) -> Kernel {
    let (batch, m, n, _) = o.dims();
    let mut kernel = kernel(op, o);
    kernel.variant = "cooperative";
    kernel.flag("cooperative", true);
    vectors(&mut kernel, &o.x, &o.w);
    let edge = able.cooperative;
    for (name, types) in [("MatrixA", "f16, A"), ("MatrixB", "f16, B"), ("MatrixC", "f32, C")] {
        kernel.code(format!("alias {name} = coop_mat{edge}x{edge}<{types}>;"));
    }
    kernel.constant("EDGE", edge);
    kernel.constant("THREADS", 4 * able.subgroup);
    let (down, across) = (m.div_ceil(64), n.div_ceil(64));
    kernel.whole("tiles_m", down);
    kernel.whole("tiles_n", across);
    kernel.groups = batch * down * across;
    kernel.collapse();
    kernel
}

fn tiled(op: &Op, o: &Matmul, tile: Tile) -> Kernel {
    let (batch, m, n, _) = o.dims();
    let mut kernel = kernel(op, o);
    tile.set(&mut kernel);
    vectors(&mut kernel, &o.x, &o.w);
    let (down, across) = (m.div_ceil(tile.rows()), n.div_ceil(tile.columns()));
    kernel.whole("tiles_m", down);
    kernel.whole("tiles_n", across);
    kernel.groups = batch * down * across;
    kernel.collapse();
    kernel
}
