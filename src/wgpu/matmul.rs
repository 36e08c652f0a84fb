use super::{Kernel, activation, adapter::Abilities, attention::by_quads, require_dtypes};
use crate::{
    dtype::DType,
    error::Result,
    layout::Spec,
    op::{Determinism, Features, Matmul, Op},
};

/// Up to this many rows a workgroup sums one column's outputs; beyond, tiles share their operands.
pub(super) const GEMV_ROWS: usize = 8;

/// Columns of a workgroup that reads eight elements at a time.
const COLUMNS: usize = 4;

/// How `matmul.wgsl` divides the work: `rows x columns` outputs per thread, `across x down` threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub name: &'static str,
    pub rows: usize,
    pub columns: usize,
    pub down: usize,
    pub across: usize,
    pub k: usize,    // vectors of four along k
    pub twice: bool, // two buffers: one barrier a tile
}

/// Rows and columns of a workgroup: 64 x 64 by 64 threads, or by 256 with a quarter of the registers; 16 x 128 for few rows; 128 x 128.
pub(super) const TILES: [Tile; 4] = [
    Tile { name: "tiled8", rows: 8, columns: 8, down: 8, across: 8, k: 4, twice: false },
    Tile { name: "tiled", rows: 4, columns: 4, down: 16, across: 16, k: 4, twice: false },
    Tile { name: "flat", rows: 4, columns: 8, down: 4, across: 16, k: 4, twice: false },
    Tile { name: "tiled128", rows: 8, columns: 8, down: 16, across: 16, k: 2, twice: true },
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
        kernel.flag("twice", self.twice);
        kernel.flag("eight", self.columns == 8);
        let threads = self.down * self.across;
        // Each load a line of its own, which compilers keep in registers; decoders of blocks are too long to repeat.
        let w_loads = self.columns() * self.k / threads;
        let blocks = kernel.operands.iter().any(|o| o.name == "w" && o.spec.dtype().is_quantized());
        let (copies, turns) = if blocks { (1, w_loads) } else { (w_loads, 1) };
        for (name, value) in [
            ("ROWS", self.rows),
            ("COLUMNS", self.columns),
            ("DOWN", self.down),
            ("ACROSS", self.across),
            ("K", self.k),
            ("BUFFERS", if self.twice { 2 } else { 1 }),
            ("X_LOADS", self.rows() * self.k / threads),
            ("W_COPIES", copies),
            ("W_TURNS", turns),
        ] {
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
        _ if m < 128 || o.dims().2 < 128 => vec![tiled(op, o, TILES[0]), tiled(op, o, TILES[1])],
        _ => [3, 1, 0].map(|tile| tiled(op, o, TILES[tile])).into(),
    };
    if able.cooperative > 0 && m > GEMV_ROWS && !invariant && halves(o) {
        kernels.insert(0, cooperative(op, o, able, TEAM));
    }
    if m <= GEMV_ROWS && !invariant && eights(o) {
        kernels.insert(0, columns(op, o, COLUMNS));
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

/// Dense rows of 16-bit floats, or of blocks, for which eight elements are read at once.
fn eights(o: &Matmul) -> bool {
    let whole = |s: &Spec| s.dtype().is_quantized() || by_quads(s);
    o.up.is_none() && o.w_scale.is_none_or(|s| s.rank() == 1) && whole(&o.w) && by_quads(&o.x)
}

/// A workgroup for `columns` outputs of each row.
pub(super) fn columns(op: &Op, o: &Matmul, columns: usize) -> Kernel {
    let (batch, m, n, _) = o.dims();
    let mut kernel = kernel(op, o);
    kernel.variant = "columns";
    kernel.flag("columns", true);
    kernel.flag("reduce", true);
    let rows = [1, 2, 4, 8].into_iter().find(|&r| r >= m).unwrap_or(8);
    kernel.constant("ROWS", rows);
    kernel.constant("COLUMNS", columns);
    vectors(&mut kernel, &o.x, &o.w);
    kernel.quad("x", true);
    kernel.quad("w", by_quads(&o.w));
    kernel.whole("tiles_n", n.div_ceil(columns));
    kernel.groups = if m == 0 { 0 } else { batch * n.div_ceil(columns) };
    kernel.collapse();
    kernel.otherwise = Some(Box::new(gemv(op, o)));
    kernel
}

/// How a cooperative kernel's subgroups lie, `over x beside`, each with `high x broad` matrices, and the tile along k.
#[derive(Debug, Clone, Copy)]
pub(super) struct Team {
    pub over: usize,
    pub beside: usize,
    pub high: usize,
    pub broad: usize,
    pub depth: usize,
}

const TEAM: Team = Team { over: 2, beside: 2, high: 4, broad: 4, depth: 32 };

pub(super) fn cooperative(op: &Op, o: &Matmul, able: &Abilities, team: Team) -> Kernel {
    let (batch, m, n, _) = o.dims();
    let edge = able.cooperative;
    let (tall, wide) = (team.over * team.high * edge, team.beside * team.broad * edge);
    let threads = team.over * team.beside * able.subgroup;
    let dense = by_quads(&o.x) && by_quads(&o.w);
    let make = |halves: bool| {
        let mut kernel = kernel(op, o);
        kernel.variant = "cooperative";
        kernel.flag("cooperative", true);
        vectors(&mut kernel, &o.x, &o.w);
        kernel.flag("by_halves", halves);
        if halves {
            kernel.halves = vec!["x", "w"];
        }
        for (name, types) in [("MatrixA", "f16, A"), ("MatrixB", "f16, B"), ("MatrixC", "f32, C")] {
            kernel.code(format!("alias {name} = coop_mat{edge}x{edge}<{types}>;"));
        }
        for (name, value) in [
            ("EDGE", edge),
            ("THREADS", threads),
            ("OVER", team.over),
            ("BESIDE", team.beside),
            ("HIGH", team.high),
            ("BROAD", team.broad),
            ("DEPTH", team.depth),
            ("X_LOADS", tall * team.depth / 4 / threads),
            ("W_LOADS", wide * team.depth / 4 / threads),
        ] {
            kernel.constant(name, value);
        }
        let (down, across) = (m.div_ceil(tall), n.div_ceil(wide));
        kernel.whole("tiles_m", down);
        kernel.whole("tiles_n", across);
        kernel.groups = batch * down * across;
        kernel.collapse();
        kernel
    };
    let mut kernel = make(dense);
    kernel.otherwise = dense.then(|| Box::new(make(false)));
    kernel
}

pub(super) fn tiled(op: &Op, o: &Matmul, tile: Tile) -> Kernel {
    let (batch, m, n, _) = o.dims();
    let make = |quads: bool| {
        let mut kernel = kernel(op, o);
        tile.set(&mut kernel);
        vectors(&mut kernel, &o.x, &o.w);
        kernel.quad("x", quads && by_quads(&o.x));
        kernel.quad("w", quads && by_quads(&o.w));
        let (down, across) = (m.div_ceil(tile.rows()), n.div_ceil(tile.columns()));
        kernel.whole("tiles_m", down);
        kernel.whole("tiles_n", across);
        kernel.groups = batch * down * across;
        kernel.collapse();
        kernel
    };
    let mut kernel = make(true);
    if by_quads(&o.x) || by_quads(&o.w) {
        kernel.otherwise = Some(Box::new(make(false)));
    }
    kernel
}
