//! One matrix product, cut into tasks.

use std::{mem::MaybeUninit, ops::Range, ptr};

use super::{
    epilogue::{COLUMNS, Epilogue, Sums},
    int8, int8_rows, rows,
    tile::{self, Ahead, BLOCK, PANEL, Pair, Quad, TALLEST, Term, Tile},
    way::Way,
    weight::Weight,
    words,
};
use crate::{
    cpu::{
        decode::decode_strided,
        kernel::{Args, Tensor},
        machine,
        pool::Pool,
        simd::{Isa, Simd, dots, element, pairs, simd},
    },
    dtype::DType,
};

/// Sizes of the tasks and of scratch memory, for up to so many rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    /// Blocks of k, and elements of one.
    blocks: usize,
    block: usize,
    /// Bytes of a block of a row of x in scratch memory.
    block_bytes: usize,
    /// Words of x for each of a step: [`tile::words`].
    words: usize,
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
/// Rows that make good use of a second cache of 2 MiB. Decoding a panel pays off over more of them than reading one.
const PANEL_ROWS: usize = 444;
const PLAIN_ROWS: usize = 444;
const INT8_ROWS: usize = 516;
const WORDS_ROWS: usize = 444;
/// A panel that was made.
const PANEL_BYTES: usize = size_of::<words::Panel>();
/// Strips of x by a panel of halves: from so many on, the panel is converted to f32 first. (Converting takes some 4 of the 30
/// instructions of a step; it pays from the second or third strip on by that count.)
const CONVERT: usize = 3;
/// Strips that go through a panel together, as many columns at a time as a strip takes: the columns are read from memory once, and again from the
/// first cache. (Zen 3, f32 from memory, by 4096 squared: 8 rows 6.0 ms, strip after strip 10.7; 32 rows 16 and 20. All strips together in place of
/// eight at most: no difference in f32, 512 rows of bytes slower. Not timed with NEON, which takes 16 columns at a time too.)
const FEW: usize = 8;

impl Product {
    /// For up to `m` rows; `gated` products have two factors.
    pub(crate) fn new(isa: Isa, threads: usize, way: Way, (m, n, k): (usize, usize, usize), gated: bool) -> Product {
        let block = way.elements().unwrap_or(1) * BLOCK;
        let blocks = k.div_ceil(block).max(1);
        let words = if matches!(way, Way::BytesPanel | Way::BytesPlain) { isa.words() } else { 1 };
        let (rows, block_bytes) = match way {
            Way::Panel => (PANEL_ROWS, BLOCK * 4),
            Way::Plain | Way::Rows => (PLAIN_ROWS, BLOCK * 4),
            Way::BytesPanel | Way::BytesPlain | Way::PairsPanel | Way::PairsPlain => (WORDS_ROWS, words * words::BLOCK),
            Way::Int8 => (INT8_ROWS, size_of::<int8::Row>()),
            Way::Int8Rows => (PLAIN_ROWS, size_of::<int8_rows::Block>()),
        };
        let rows = (rows * (machine::caches().second >> 10) / 2048).clamp(rows / 4, 2 * rows);
        let most = (CHUNK_BYTES / blocks.saturating_mul(block_bytes)).max(1).next_multiple_of(TALLEST).min(rows);
        let chunk = m.div_ceil(m.div_ceil(most).max(1)).next_multiple_of(TALLEST).min(m).max(1);
        // Some 5 us by one thread; fewer than four rows take about as long as four, for which as much is read.
        let small = m.max(4).saturating_mul(n).saturating_mul(k) < 128 << 10;
        // Enough tasks for every thread, columns first: each panel is then decoded once.
        let panels = n.div_ceil(PANEL).max(1);
        let columns = (panels / (6 * threads)).clamp(1, COLUMNS / PANEL) * PANEL;
        let across = n.div_ceil(columns).max(1);
        let parts = if small || matches!(way, Way::Rows | Way::Int8Rows) { 1 } else { (2 * threads).div_ceil(across) };
        let part = chunk.div_ceil(parts).next_multiple_of(if way == Way::Int8 { int8::TALLEST } else { TALLEST });
        Product {
            blocks,
            block,
            block_bytes,
            words,
            chunk,
            part,
            columns,
            threads,
            factors: 1 + usize::from(gated),
            small,
        }
    }

    fn x_bytes(&self) -> usize {
        // Strips are rounded up in height: see `tile::height`.
        let rows = self.chunk + self.chunk / 4 + TALLEST;
        (self.blocks * rows * self.block_bytes).next_multiple_of(64)
    }

    fn sums_bytes(&self) -> usize {
        self.part * self.columns * 4
    }

    fn thread_bytes(&self) -> usize {
        PANEL_BYTES + self.factors * self.sums_bytes()
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
            if way.elements().is_some() {
                height = tile::height(rows);
                part = part / height * height;
                let strips = rows.div_ceil(height);
                self.each(pool, strips * self.blocks, &|task, _| {
                    let (b, strip) = (task / strips, task % strips);
                    let some = strip * height..rows.min(strip * height + height);
                    // SAFETY: the strip has its own place in scratch memory.
                    simd!(args.isa, s => unsafe {
                        let to = args.scratch::<f32>().add(task * self.words * tile::strip_pitch(height));
                        self.strip(s, way, job, chunk, some, b, height, to);
                    });
                });
            } else {
                self.each(pool, rows.div_ceil(16), &|task, _| {
                    for i in task * 16..rows.min(task * 16 + 16) {
                        // SAFETY: row i has its own place in scratch memory.
                        unsafe {
                            if way == Way::Rows {
                                simd!(args.isa, s => self.decode(s, job, chunk + i, args.scratch(), i));
                            } else {
                                dots!(args.isa, s => self.round(s, way, job, chunk + i, args.scratch(), i));
                            }
                        }
                    }
                });
            }
            let (all, parts) = (rows, rows.div_ceil(part));
            self.each(pool, across * parts, &|task, thread| {
                let (i, j) = (task % parts * part, task / parts * self.columns);
                let (rows, columns) = (part.min(rows - i), self.columns.min(n - j));
                // SAFETY: x was converted before, each thread has its own part of scratch memory, and each task its own
                // part of the output.
                unsafe {
                    let own = args.scratch::<u8>().add(self.x_bytes() + thread * self.thread_bytes());
                    let task = Task { job, x: args.scratch(), own, chunk, all, height, i, rows, j, columns };
                    match way {
                        Way::Rows => simd!(args.isa, s => self.dots::<_, false>(s, &task)),
                        Way::Int8Rows => dots!(args.isa, s => self.dots::<_, true>(s, &task)),
                        Way::Int8 => dots!(args.isa, s => self.integers(s, &task)),
                        Way::BytesPanel | Way::BytesPlain => dots!(args.isa, s => self.tiles::<_, Quad>(s, &task)),
                        Way::PairsPanel | Way::PairsPlain => pairs!(args.isa, s => self.tiles::<_, Pair>(s, &task)),
                        Way::Panel | Way::Plain => simd!(args.isa, s => self.tiles::<_, f32>(s, &task)),
                    }
                }
            });
        }
    }

    fn each(&self, pool: &mut Pool, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if self.small { (0..tasks).for_each(|i| task(i, 0)) } else { pool.run(tasks, task) }
    }

    /// Block `b` of a strip of rows, which are counted from row `chunk` of the job; zeros beyond the rows and beyond k.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "where from and where to")]
    unsafe fn strip<S: Simd>(
        &self,
        s: S,
        way: Way,
        job: &Job,
        chunk: usize,
        rows: Range<usize>,
        b: usize,
        height: usize,
        to: *mut f32,
    ) {
        let (x, p) = (job.x, b * self.block);
        let len = self.block.min(x.spec.dim(0) - p.min(x.spec.dim(0)));
        let (from, pitch) = if len > 0 { x.matrix(job.first + chunk + rows.start, p) } else { (to.cast(), 0) };
        let elements = way.elements().unwrap_or(1);
        let as_is = [DType::F32, DType::BF16, DType::U8][elements / 2];
        let as_is = len == self.block && x.dtype() == as_is && x.spec.stride(0) == 1;
        let mut values = MaybeUninit::<[f32; BLOCK]>::uninit();
        let values = values.as_mut_ptr().cast::<f32>();
        // SAFETY: the rows exist; the buffer holds a block.
        unsafe {
            for i in 0..height {
                let to = to.add(i * tile::RUN);
                if rows.start + i >= rows.end {
                    values.write_bytes(0, BLOCK);
                    tile::place(s, self.words, values, height, to);
                    continue;
                }
                let from = from.add(i * pitch);
                if as_is {
                    tile::place(s, self.words, from.cast(), height, to);
                    continue;
                }
                let stride = x.spec.stride(0);
                match elements {
                    Quad::ELEMENTS => words::row(s, x.dtype(), from, stride, len, values.cast()),
                    Pair::ELEMENTS => words::pairs(s, x.dtype(), from, stride, len, values.cast()),
                    _ => {
                        if len > 0 {
                            decode_strided(s, x.dtype(), from, stride, values, len);
                        }
                        values.add(len).write_bytes(0, BLOCK - len);
                    }
                }
                tile::place(s, self.words, values, height, to);
            }
        }
    }

    /// Row `row` of the job to row `i` of scratch memory.
    #[inline(always)]
    unsafe fn decode<S: Simd>(&self, s: S, job: &Job, row: usize, to: *mut f32, i: usize) {
        let (x, k) = (job.x, job.x.spec.dim(0));
        for (b, p) in (0..k).step_by(BLOCK).enumerate() {
            // SAFETY: the row exists, and scratch memory has room for it.
            unsafe {
                let (from, to) = (x.at::<u8>(job.first + row, p), to.add((i * self.blocks + b) * BLOCK));
                decode_strided(s, x.dtype(), from, x.spec.stride(0), to, BLOCK.min(k - p));
            }
        }
    }

    /// The same in 8 bits.
    #[inline(always)]
    unsafe fn round<S: Simd>(&self, s: S, way: Way, job: &Job, row: usize, to: *mut u8, i: usize) {
        let (x, k) = (job.x, job.x.spec.dim(0));
        for (b, p) in (0..k).step_by(BLOCK).enumerate() {
            let mut own = MaybeUninit::<[f32; BLOCK]>::uninit();
            let own = own.as_mut_ptr().cast::<f32>();
            // SAFETY: as above.
            unsafe {
                let (from, len) = (x.at::<u8>(job.first + row, p), BLOCK.min(k - p));
                let as_is = len == BLOCK && x.dtype() == DType::F32 && x.spec.stride(0) == 1;
                if !as_is {
                    decode_strided(s, x.dtype(), from, x.spec.stride(0), own, len);
                    own.add(len).write_bytes(0, BLOCK - len);
                }
                let (values, dtype) = (if as_is { from.cast() } else { own.cast_const() }, job.w.tensor.dtype());
                if way == Way::Int8 {
                    int8::row(s, dtype, values, to.cast::<int8::Row>().add(b * self.chunk + i));
                } else {
                    int8_rows::block(s, dtype, values, to.cast::<int8_rows::Block>().add(i * self.blocks + b));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tiles<S: Simd, X: Term>(&self, s: S, task: &Task) {
        if const { X::ELEMENTS == Pair::ELEMENTS && !S::PAIRS } {
            return; // never planned, and so never compiled
        }
        let strips = task.rows.div_ceil(task.height);
        for f in 0..self.factors {
            let Some(w) = task.factor(f) else { continue };
            let (dtype, k) = (w.tensor.dtype(), w.k());
            // SAFETY: the task's rows and columns exist; buffers are sized for them.
            unsafe {
                let panel = task.own.cast::<f32>();
                if k == 0 {
                    self.sums(task, f).write_bytes(0, task.rows * self.columns);
                    if f + 1 == self.factors {
                        self.finish(s, task);
                    }
                }
                for p in (0..k).step_by(self.block) {
                    let range = p..k.min(p + self.block);
                    for j in (0..task.columns).step_by(PANEL) {
                        let step = Step { f, p, j, ahead: self.ahead(w, task, (p, j), PANEL) };
                        let range = range.clone();
                        if const { X::ELEMENTS > 1 } {
                            let signed = task.job.x.dtype() == DType::I8;
                            let (b, start) = s.outline(
                                #[inline(always)]
                                || match const { X::INTEGER } {
                                    true => words::panel::<S, 1>(s, w, task.j + j, range, signed, panel.cast()),
                                    false => words::panel::<S, 2>(s, w, task.j + j, range, false, panel.cast()),
                                },
                            );
                            self.strips::<S, X>(s, task, step, b.cast(), start);
                            continue;
                        }
                        let direct = strips < CONVERT || dtype == DType::F32;
                        let mut ready = false;
                        if direct {
                            let _ = element!(dtype, T => if let Some(b) = w.ready_panel::<T>(task.j + j, p) {
                                self.strips::<S, T>(s, task, step, b, ptr::null());
                                ready = true;
                            });
                        }
                        if !ready {
                            let plain = s.plain();
                            plain.outline(
                                #[inline(always)]
                                || w.panel(plain, task.j + j, range, panel),
                            );
                            self.strips::<S, f32>(s, task, step, panel, ptr::null());
                        }
                    }
                }
            }
        }
    }

    /// All strips of a task by one panel; what is complete is finished while it is in the first cache.
    #[inline(always)]
    unsafe fn strips<S: Simd, T: Term>(&self, s: S, task: &Task, step: Step, b: *const T, start: *const f32) {
        let (height, pitch, k) = (task.height, self.words * tile::strip_pitch(task.height), task.job.w.k());
        let (strips, all, first) = (task.rows.div_ceil(height), task.all.div_ceil(height), task.i / height);
        let Step { f, p, j, ahead } = step;
        let len = (k - p).min(self.block);
        let last = f + 1 == self.factors && p + len == k;
        // SAFETY: the task's rows and columns exist; buffers are sized for them.
        unsafe {
            let (a, c) = (task.x.add((p / self.block * all + first) * pitch), self.sums(task, f).add(j));
            // Sums that need nothing else go where the output is, but for those that it has no room for.
            let bare = last && task.job.up.is_none() && task.job.epilogue.is_bare() && task.columns - j >= PANEL;
            let out = match bare {
                true => task.job.epilogue.bare(task.job.first + task.chunk + task.i, task.j + j),
                false => (ptr::null_mut(), 0),
            };
            let k = len.div_ceil(T::ELEMENTS);
            let columns = PANEL.min(task.columns - j);
            // A few strips go through a panel together, as many columns at a time as a strip takes.
            let width = if strips <= FEW { tile::width::<S>(height) } else { PANEL };
            let mut ahead = ahead.share(strips * columns.div_ceil(width), k);
            for v in (0..columns).step_by(width) {
                for i in 0..strips {
                    let rows = i * height..task.rows.min(i * height + height);
                    let direct = bare && rows.len() == height;
                    let tile = Tile {
                        a: a.add(i * pitch),
                        b: b.add(tile::column::<S>(k, v)),
                        k,
                        c: c.add(rows.start * self.columns + v),
                        pitch: self.columns,
                        columns: width.min(columns - v),
                        first: p == 0,
                        start: if start.is_null() { start } else { start.add(v) },
                        ahead,
                        to: if direct { (out.0.add(rows.start * out.1 + v), out.1) } else { (ptr::null_mut(), 0) },
                    };
                    tile::multiply(s, height, tile);
                    ahead = ahead.next();
                    if last && !direct && v + width >= columns {
                        self.finish_part(s, task, rows, (j, columns));
                    }
                }
            }
        }
    }

    /// The memory that is read after the panel of so many columns at (p, j).
    #[inline(always)]
    fn ahead(&self, w: &Weight, task: &Task, (p, j): (usize, usize), panel: usize) -> Ahead {
        let k = w.k();
        if j + panel < task.columns {
            w.ahead(task.j + j + panel, p..k.min(p + self.block))
        } else if p + self.block < k {
            w.ahead(task.j, p + self.block..k.min(p + 2 * self.block))
        } else {
            w.ahead(task.j + self.columns * self.threads, 0..k.min(self.block))
        }
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
                    for j in (0..task.columns).step_by(int8::PANEL) {
                        let tile = int8::Tile {
                            a: task.x.cast::<int8::Row>().add(b * self.chunk + task.i),
                            b: panel,
                            k: range.len(),
                            c: sums.add(j),
                            pitch: self.columns,
                            first: p == 0,
                            ahead: self.ahead(w, task, (p, j), int8::PANEL),
                        };
                        let range = range.clone();
                        int8::panel(s, w, task.j + j, range, panel);
                        int8::multiply(s, w.tensor.dtype(), task.rows, tile);
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.finish(s, task) }
    }

    #[inline(always)]
    unsafe fn dots<S: Simd, const INTEGER: bool>(&self, s: S, task: &Task) {
        let pitch = self.blocks * BLOCK;
        for f in 0..self.factors {
            let Some(w) = task.factor(f) else { continue };
            // SAFETY: the task's rows and columns exist; buffers are sized for them.
            unsafe {
                let (columns, sums) = ((task.j, task.j + task.columns), self.sums(task, f));
                if INTEGER {
                    int8_rows::multiply(s, task.rows, (task.x.cast(), self.blocks), w, columns, (sums, self.columns));
                } else {
                    rows::multiply(s, task.rows, (task.x, pitch), w, columns, (sums, self.columns));
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.finish(s, task) }
    }

    unsafe fn sums(&self, task: &Task, factor: usize) -> *mut f32 {
        // SAFETY: inside the thread's part of scratch memory.
        unsafe { task.own.add(PANEL_BYTES + factor * self.sums_bytes()).cast() }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, task: &Task) {
        // SAFETY: as for the callers.
        unsafe { self.finish_part(s, task, 0..task.rows, (0, task.columns)) }
    }

    /// Rows of the task, and `n` columns from its j-th on.
    #[inline(always)]
    unsafe fn finish_part<S: Simd>(&self, s: S, task: &Task, rows: Range<usize>, (j, n): (usize, usize)) {
        // SAFETY: as for the callers.
        unsafe {
            let at = rows.start * self.columns + j;
            let up = task.job.up.map(|_| self.sums(task, 1).add(at).cast_const());
            let sums = Sums { c: self.sums(task, 0).add(at), up, pitch: self.columns };
            let rows = task.chunk + task.i + rows.start..task.chunk + task.i + rows.end;
            let s = s.plain();
            s.outline(
                #[inline(always)]
                || task.job.epilogue.finish(s, (task.job.first, rows), (task.j + j, n), sums),
            );
        }
    }
}

/// Where a task is: factor `f`, element `p` of k, column `j` of its columns.
#[derive(Clone, Copy)]
struct Step {
    f: usize,
    p: usize,
    j: usize,
    ahead: Ahead,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the number of rows, also fewer than planned for: x has room, padding is less than a row for a strip of up to six
    /// and two for higher ones, and more rows never are less work.
    #[test]
    fn strips_fit() {
        for isa in Isa::available() {
            for (way, m) in [
                (Way::Panel, 1),
                (Way::Panel, 3),
                (Way::Plain, 15),
                (Way::Panel, 200),
                (Way::Plain, 5000),
                (Way::BytesPanel, 5000),
                (Way::PairsPlain, 700),
            ] {
                let product = Product::new(isa, 2, way, (m, 4096, 600), false);
                let mut before = 0;
                for rows in 1..=product.chunk {
                    let height = tile::height(rows);
                    let strips = rows.div_ceil(height);
                    let work = strips * height;
                    assert!(work >= rows && work < rows + strips * (1 + usize::from(height > 6)) + 1, "{rows}");
                    assert!(
                        product.blocks * strips * product.words * tile::strip_pitch(height) * 4 <= product.x_bytes(),
                        "{rows}"
                    );
                    assert!(product.part / height >= 1 && work <= product.chunk.next_multiple_of(TALLEST) + 2 * strips);
                    assert!(work * 10 >= before * 9, "{} {rows}", isa.name());
                    before = work;
                }
            }
        }
    }
}
