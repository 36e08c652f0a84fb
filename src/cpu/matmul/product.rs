//! One matrix product, cut into tasks.

use std::{mem::MaybeUninit, ops::Range};

use super::{
    epilogue::{COLUMNS, Epilogue},
    int8, int8_rows, rows,
    tile::{self, BLOCK, PANEL, TALLEST, Tile},
    weight::Weight,
};
use crate::{
    cpu::{
        decode::decode_strided,
        kernel::{Args, Tensor},
        pool::Pool,
        simd::{Element, Simd, element, simd},
    },
    dtype::DType,
    op::Determinism,
};

/// How the weight is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Packed in panels.
    Panel,
    /// Panels are decoded from any layout.
    Plain,
    /// Row by row, for few rows of x.
    Rows,
    /// Panels of 8-bit integers are made from any quantized layout.
    Int8,
    /// Row by row, unpacked to 8-bit integers, for few rows of x.
    Int8Rows,
}

impl Way {
    /// The word in kernels' names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Panel => "panel",
            Way::Plain => "plain",
            Way::Rows => "rows",
            Way::Int8 => "int8",
            Way::Int8Rows => "int8-rows",
        }
    }

    /// What the order of its sums promises.
    pub(crate) fn determinism(self) -> Determinism {
        match self {
            Way::Panel | Way::Plain | Way::Int8 => Determinism::BatchInvariant,
            Way::Rows | Way::Int8Rows => Determinism::ThreadCount,
        }
    }
}

/// Sizes of the tasks and of scratch memory, for up to so many rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    /// Blocks of k.
    blocks: usize,
    /// Bytes of a block of a row of x in scratch memory.
    block_bytes: usize,
    /// Rows of x that are in scratch memory at once.
    chunk: usize,
    /// Rows and columns of a task.
    part: usize,
    columns: usize,
    threads: usize,
    factors: usize,
    /// Too small to be worth waking another thread.
    small: bool,
}

/// A product's operands: rows `first .. first + rows` of x and of the output.
pub(crate) struct Job<'a> {
    pub(crate) x: Tensor<'a>,
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) w: Weight<'a>,
    pub(crate) up: Option<Weight<'a>>,
    pub(crate) epilogue: Epilogue<'a>,
}

/// Bytes of x that should stay in the caches.
const CHUNK_BYTES: usize = 8 << 20;
/// Rows that make good use of the second cache. Decoding a panel pays off over more of them than reading one.
const PANEL_ROWS: usize = 224;
const PLAIN_ROWS: usize = 392;
const INT8_ROWS: usize = 516;
/// Strips of x by a panel of halves: from so many on, the panel is converted to f32 first. (Converting takes some 4 of the 30
/// instructions of a step; it pays from the second or third strip on by that count.)
const CONVERT: usize = 3;

impl Product {
    /// For up to `m` rows; `gated` products have two factors.
    pub(crate) fn new(threads: usize, way: Way, (m, n, k): (usize, usize, usize), gated: bool) -> Product {
        let blocks = k.div_ceil(BLOCK).max(1);
        let (rows, block_bytes) = match way {
            Way::Panel => (PANEL_ROWS, BLOCK * 4),
            Way::Plain | Way::Rows => (PLAIN_ROWS, BLOCK * 4),
            Way::Int8 => (INT8_ROWS, size_of::<int8::Row>()),
            Way::Int8Rows => (PLAIN_ROWS, size_of::<int8_rows::Block>()),
        };
        let chunk = (CHUNK_BYTES / (blocks * block_bytes)).next_multiple_of(TALLEST).min(rows).min(m).max(1);
        let small = m.saturating_mul(n).saturating_mul(k) < 64 << 10;
        // Enough tasks for every thread, columns first: each panel is then decoded once.
        let panels = n.div_ceil(PANEL).max(1);
        let columns = (panels / (3 * threads)).clamp(1, COLUMNS / PANEL) * PANEL;
        let across = n.div_ceil(columns).max(1);
        let parts = if small || matches!(way, Way::Rows | Way::Int8Rows) { 1 } else { (2 * threads).div_ceil(across) };
        let part = chunk.div_ceil(parts).next_multiple_of(if way == Way::Int8 { int8::TALLEST } else { TALLEST });
        Product { blocks, block_bytes, chunk, part, columns, threads, factors: 1 + usize::from(gated), small }
    }

    fn x_bytes(&self) -> usize {
        // Strips are rounded up in height (see `tile::height`) and have a few numbers behind them.
        let rows = self.chunk + self.chunk / 4 + TALLEST + 2;
        (self.blocks * rows * self.block_bytes).next_multiple_of(64)
    }

    fn sums_bytes(&self) -> usize {
        self.part * self.columns * 4
    }

    fn thread_bytes(&self) -> usize {
        BLOCK * PANEL * 4 + self.factors * self.sums_bytes()
    }

    /// Bytes of scratch memory.
    pub(crate) fn scratch(&self) -> usize {
        self.x_bytes() + self.threads * self.thread_bytes()
    }

    /// Computes the product. `args` lends the scratch memory.
    pub(crate) fn run(&self, args: &Args, pool: &mut Pool, way: Way, job: &Job) {
        let n = job.w.n();
        let across = n.div_ceil(self.columns);
        for chunk in (0..job.rows).step_by(self.chunk) {
            let rows = self.chunk.min(job.rows - chunk);
            let mut part = self.part;
            let mut height = 1;
            if matches!(way, Way::Panel | Way::Plain) {
                height = simd!(args.isa, s => tile::height(s, rows));
                part = part / height * height;
                let strips = rows.div_ceil(height);
                self.each(pool, strips * self.blocks, |task, _| {
                    let (b, strip) = (task / strips, task % strips);
                    let some = strip * height..rows.min(strip * height + height);
                    // SAFETY: the strip has its own place in scratch memory.
                    simd!(args.isa, s => unsafe {
                        let to = args.scratch::<f32>().add(task * tile::strip_pitch(height));
                        self.strip(s, job, chunk, some, b, height, to);
                    });
                });
            } else {
                self.each(pool, rows.div_ceil(16), |task, _| {
                    for i in task * 16..rows.min(task * 16 + 16) {
                        // SAFETY: row i has its own place in scratch memory.
                        simd!(args.isa, s => unsafe { self.convert(s, way, job, chunk + i, args.scratch(), i) });
                    }
                });
            }
            let (all, parts) = (rows, rows.div_ceil(part));
            self.each(pool, across * parts, |task, thread| {
                let (i, j) = (task % parts * part, task / parts * self.columns);
                let (rows, columns) = (part.min(rows - i), self.columns.min(n - j));
                // SAFETY: x was converted before, each thread has its own part of scratch memory, and each task its own
                // part of the output.
                unsafe {
                    let own = args.scratch::<u8>().add(self.x_bytes() + thread * self.thread_bytes());
                    let task = Task { job, x: args.scratch(), own, chunk, all, height, i, rows, j, columns };
                    simd!(args.isa, s => match way {
                        Way::Rows | Way::Int8Rows => self.dots(s, way, &task),
                        Way::Int8 => self.integers(s, &task),
                        Way::Panel | Way::Plain => self.tiles(s, &task),
                    });
                }
            });
        }
    }

    fn each(&self, pool: &mut Pool, tasks: usize, task: impl Fn(usize, usize) + Sync) {
        if self.small { (0..tasks).for_each(|i| task(i, 0)) } else { pool.run(tasks, task) }
    }

    /// Block `b` of a strip of rows, which are counted from row `chunk` of the job; zeros beyond the rows and beyond k.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "where from and where to")]
    unsafe fn strip<S: Simd>(
        &self,
        s: S,
        job: &Job,
        chunk: usize,
        rows: Range<usize>,
        b: usize,
        height: usize,
        to: *mut f32,
    ) {
        let (x, p) = (job.x, b * BLOCK);
        let len = BLOCK.min(x.spec.dim(0) - p.min(x.spec.dim(0)));
        let mut values = MaybeUninit::<[[f32; BLOCK]; 16]>::uninit();
        let values = values.as_mut_ptr().cast::<f32>();
        // SAFETY: the rows exist, at most LANES of them; a strip of one row lies in scratch memory as in the buffer.
        unsafe {
            let lanes = if height == 1 { 1 } else { S::LANES };
            let rows_at = if height == 1 { to } else { values };
            for i in 0..lanes {
                let (row, to) = (rows.start + i, rows_at.add(i * BLOCK));
                let len = if row < rows.end { len } else { 0 };
                if len > 0 {
                    let from = x.at::<u8>(job.first + chunk + row, p);
                    decode_strided(s, x.dtype(), from, x.spec.stride(0), to, len);
                }
                to.add(len).write_bytes(0, BLOCK - len);
            }
            if height > 1 {
                tile::interleave(s, values, height, to);
            }
        }
    }

    /// Row `row` of the job to row `i` of scratch memory.
    #[inline(always)]
    unsafe fn convert<S: Simd>(&self, s: S, way: Way, job: &Job, row: usize, to: *mut u8, i: usize) {
        let (x, k) = (job.x, job.x.spec.dim(0));
        for (b, p) in (0..k).step_by(BLOCK).enumerate() {
            let len = BLOCK.min(k - p);
            // SAFETY: the row exists, and scratch memory has room for it.
            unsafe {
                let from = x.at::<u8>(job.first + row, p);
                if way == Way::Rows {
                    let to = to.cast::<f32>().add((i * self.blocks + b) * BLOCK);
                    decode_strided(s, x.dtype(), from, x.spec.stride(0), to, len);
                    continue;
                }
                let mut values = [0f32; BLOCK];
                decode_strided(s, x.dtype(), from, x.spec.stride(0), values.as_mut_ptr(), len);
                let (values, dtype) = (values.as_ptr(), job.w.tensor.dtype());
                if way == Way::Int8 {
                    int8::row(s, dtype, values, to.cast::<int8::Row>().add(b * self.chunk + i));
                } else {
                    int8_rows::block(s, dtype, values, to.cast::<int8_rows::Block>().add(i * self.blocks + b));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tiles<S: Simd>(&self, s: S, task: &Task) {
        let (height, pitch) = (task.height, tile::strip_pitch(task.height));
        let (strips, all, first) = (task.rows.div_ceil(height), task.all.div_ceil(height), task.i / height);
        for f in 0..self.factors {
            let Some(w) = task.factor(f) else { continue };
            // SAFETY: the task's rows and columns exist; buffers are sized for them.
            unsafe {
                let (panel, sums) = (task.own.cast::<f32>(), self.sums(task, f));
                let k = w.k();
                if k == 0 {
                    sums.write_bytes(0, task.rows * self.columns);
                }
                for (b, p) in (0..k).step_by(BLOCK).enumerate() {
                    let range = p..k.min(p + BLOCK);
                    let tile = Tile {
                        a: task.x.add((b * all + first) * pitch),
                        b: panel as *const f32,
                        k: range.len(),
                        c: sums,
                        pitch: self.columns,
                        first: p == 0,
                        sum: task.job.epilogue.sum,
                    };
                    for j in (0..task.columns).step_by(PANEL) {
                        let tile = Tile { c: tile.c.add(j), ..tile };
                        let direct = strips < CONVERT || w.tensor.dtype() == DType::F32;
                        let ready = direct.then(|| {
                            element!(w.tensor.dtype(), T => ready::<S, T>(s, w, task.j + j, p, (strips, height), tile))
                        });
                        if ready.flatten() != Some(true) {
                            let range = range.clone();
                            s.outline(
                                #[inline(always)]
                                || w.panel(s, task.j + j, range, panel),
                            );
                            tile::multiply(s, strips, height, tile);
                        }
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.finish(s, task) }
    }

    #[inline(always)]
    unsafe fn integers<S: Simd>(&self, s: S, task: &Task) {
        for f in 0..self.factors {
            let Some(w) = task.factor(f) else { continue };
            // SAFETY: the task's rows and columns exist; buffers are sized for them.
            unsafe {
                let (panel, sums, k) = (task.own.cast::<int8::Panel>(), self.sums(task, f), w.k());
                if k == 0 {
                    sums.write_bytes(0, task.rows * self.columns);
                }
                for (b, p) in (0..k).step_by(BLOCK).enumerate() {
                    let range = p..k.min(p + BLOCK);
                    for j in (0..task.columns).step_by(PANEL) {
                        let tile = int8::Tile {
                            a: task.x.cast::<int8::Row>().add(b * self.chunk + task.i),
                            b: panel,
                            k: range.len(),
                            c: sums.add(j),
                            pitch: self.columns,
                            first: p == 0,
                        };
                        let range = range.clone();
                        s.outline(
                            #[inline(always)]
                            || int8::panel(s, w, task.j + j, range, panel),
                        );
                        int8::multiply(s, w.tensor.dtype(), task.rows, tile);
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.finish(s, task) }
    }

    #[inline(always)]
    unsafe fn dots<S: Simd>(&self, s: S, way: Way, task: &Task) {
        let pitch = self.blocks * BLOCK;
        for f in 0..self.factors {
            let Some(w) = task.factor(f) else { continue };
            // SAFETY: the task's rows and columns exist; buffers are sized for them.
            unsafe {
                let (columns, sums) = ((task.j, task.j + task.columns), self.sums(task, f));
                if way == Way::Rows {
                    rows::multiply(s, task.rows, (task.x, pitch), w, columns, (sums, self.columns));
                } else {
                    int8_rows::multiply(s, task.rows, (task.x.cast(), self.blocks), w, columns, (sums, self.columns));
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.finish(s, task) }
    }

    unsafe fn sums(&self, task: &Task, factor: usize) -> *mut f32 {
        // SAFETY: inside the thread's part of scratch memory.
        unsafe { task.own.add(BLOCK * PANEL * 4 + factor * self.sums_bytes()).cast() }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, task: &Task) {
        // SAFETY: as for the callers.
        unsafe {
            let (c, up) = (self.sums(task, 0), task.job.up.map(|_| self.sums(task, 1)));
            for i in 0..task.rows {
                let row = (task.job.first, task.chunk + task.i + i);
                let up = up.map(|u| u.add(i * self.columns).cast_const());
                let c = c.add(i * self.columns);
                s.outline(
                    #[inline(always)]
                    || task.job.epilogue.finish(s, row, (task.j, task.columns), c, up),
                );
            }
        }
    }
}

/// Rows `chunk + i ..` and columns `j ..` of a job.
struct Task<'a> {
    job: &'a Job<'a>,
    x: *const f32,
    own: *mut u8,
    chunk: usize,
    /// Rows in scratch memory, in strips of this height.
    all: usize,
    height: usize,
    i: usize,
    rows: usize,
    j: usize,
    columns: usize,
}

impl<'a> Task<'a> {
    fn factor(&self, f: usize) -> Option<&'a Weight<'a>> {
        if f == 0 { Some(&self.job.w) } else { self.job.up.as_ref() }
    }
}

/// Multiplies with a panel that lies in memory as the tile reads it; false where it does not.
#[inline(always)]
unsafe fn ready<S: Simd, T: Element>(
    s: S,
    w: &Weight,
    j: usize,
    k: usize,
    (strips, height): (usize, usize),
    tile: Tile<f32>,
) -> bool {
    let Some(b) = w.ready_panel::<T>(j, k) else { return false };
    let Tile { a, k, c, pitch, first, sum, .. } = tile;
    // SAFETY: the caller's tile, with another panel of the same extent.
    unsafe { tile::multiply(s, strips, height, Tile { a, b, k, c, pitch, first, sum }) };
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::Isa;

    /// Whatever the number of rows, also fewer than planned for: x has room, padding is less than a row for a strip of up to six
    /// and two for higher ones, and more rows never are less work.
    #[test]
    fn strips_fit() {
        for isa in Isa::available() {
            for (way, m) in [(Way::Panel, 1), (Way::Panel, 3), (Way::Plain, 15), (Way::Panel, 200), (Way::Plain, 5000)]
            {
                let product = Product::new(2, way, (m, 4096, 600), false);
                let mut before = 0;
                for rows in 1..=product.chunk {
                    let height = simd!(isa, s => tile::height(s, rows));
                    let strips = rows.div_ceil(height);
                    let work = strips * height;
                    assert!(work >= rows && work < rows + strips * (1 + usize::from(height > 6)) + 1, "{rows}");
                    assert!(product.blocks * strips * tile::strip_pitch(height) * 4 <= product.x_bytes(), "{rows}");
                    assert!(product.part / height >= 1 && work <= product.chunk.next_multiple_of(TALLEST) + 2 * strips);
                    assert!(work * 10 >= before * 9, "{} {rows}", isa.name());
                    before = work;
                }
            }
        }
    }
}
