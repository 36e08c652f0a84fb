//! Prefill in chunks of Q = 64 tokens (the state-space duality of Dao and Gu, "Transformers are SSMs", 2024). With `l = dt' a`, `S` its
//! running sum within the chunk, `X = dt' x`, and a head's state H turned to `[n][p]`:
//!
//! ```text
//! G = C B^T                      [Q, Q], once for the heads of a group that a task has
//! M[i][j] = exp(S[i] - S[j]) G[i][j]   for j <= i, else 0: never the exponential of a positive number that is used
//! Y = exp(S) (C H) + M X         [Q, p]
//! H = exp(S[last]) H + B^T (exp(S[last] - S) X)
//! ```
//!
//! Work per token and head: 4 n p for C H and B^T X, Q p for M X (its upper half is left out), Q n / heads for G: 38 kFLOP at p 64, n 128,
//! all but the 16 exponentials in [`product`]s on tiles in the second cache. A step by step scan does 41 kFLOP, of which half are no fused
//! ones, and stores the state in every step: 3 instructions and 2 accesses for what here are 2 instructions.
//!
//! Measured on one core with AVX-512 (f32 peak 175 GFLOP/s, matrix products of the size 114), f32, p 64, n 128: 2048 tokens of 48 heads in
//! 41 ms, 512 of 128 in 24 ms, 98 and 112 GFLOP/s; the step by step scan took 142 and 90 ms, with the state in the nearest cache. Rows of x and
//! out lie kilobytes apart, and are asked for early: what that gains was lost in the noise of a shared machine.
//!
//! Longer chunks only add to M X. A sum of logarithms that grows (a > 0 or dt < 0, which models do not have) cuts a chunk short before
//! an exponential can overflow, and a step that alone grows beyond f32 makes its head NaN; one that falls is held at -200 a step, so that no difference is inf - inf.

use super::{
    super::{
        Device,
        kernel::{Args, Kernel, Tensor},
        pool::Pool,
        product::{Left, Rows, Start, product},
        row::{PAD, Row, padded},
        simd::{Simd, math, simd},
    },
    number, time_step,
};
use crate::{backend::Plans, error::Result, op::SsmScan};

/// Tokens of a chunk.
const CHUNK: usize = 64;
/// Columns of a state (of p) of a task.
const WIDE: usize = 64;
/// Heads of a task at most, which share G.
const HEADS: usize = 8;
/// Rows of triangles that are cut at the same column.
const STAIR: usize = 16;
/// Logarithms of growth and of decay that are let be.
const GROWTH: f64 = 60.0;
const DECAY: f32 = -200.0;
/// The largest logarithm of a step whose exponential is a number.
const MOST: f32 = 88.0;

pub(super) fn plan(kernel: Kernel, device: &Device, op: SsmScan) -> Result<Plans> {
    let (batch, _, heads, p, groups, _) = op.dims();
    let (parts, group, threads) = (p.div_ceil(WIDE), heads / groups.max(1), device.info.threads);
    // Heads do not mix: how many a task has changes no bit.
    let heads_per_task = (batch * heads * parts / (4 * threads)).clamp(1, HEADS);
    let blocks = group.div_ceil(heads_per_task);
    let each = Tiles::floats(&op, heads_per_task);
    let scratch = each.saturating_mul(size_of::<f32>()).saturating_mul(threads);
    kernel.scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        pool.run(batch * groups * blocks * parts, |task, thread| {
            let (rest, part) = (task / parts, task % parts);
            let (rest, block) = (rest / blocks, rest % blocks);
            let (sequence, g) = (rest / groups, rest % groups);
            let first = g * group + block * heads_per_task;
            let heads = first..((g + 1) * group).min(first + heads_per_task);
            // SAFETY: each thread has its own buffers; columns of a head's state are one task's.
            simd!(args.isa, s => unsafe {
                let tiles = Tiles::new(&op, heads_per_task, args.scratch::<f32>().add(thread * each));
                scan(s, &Scan { op: &op, args, tiles, sequence, group: g, column: part * WIDE }, heads)
            })
        })
    })
}

/// A thread's buffers.
#[derive(Clone, Copy)]
struct Tiles {
    /// `[heads][n][p]`
    states: *mut f32,
    /// `[CHUNK][n]` each; b also holds a state on its way in and out, `[p][n]`.
    b: *mut f32,
    c: *mut f32,
    /// `[n][CHUNK]`
    b_turned: *mut f32,
    /// `[CHUNK][CHUNK]`: G, and M.
    g: *mut f32,
    m: *mut f32,
    /// `[CHUNK][p]`
    x: *mut f32,
    y: *mut f32,
    /// `[CHUNK]`: dt', S, exp(S).
    delta: *mut f32,
    sums: *mut f32,
    decays: *mut f32,
    /// `[p]`: exp(S\[last\]) everywhere; a row of x or out.
    last: *mut f32,
    row: *mut f32,
}

impl Tiles {
    fn floats(op: &SsmScan, heads: usize) -> usize {
        let n = padded(op.b.dim(0));
        let square = CHUNK * CHUNK + PAD;
        n.saturating_mul(heads * WIDE + 3 * CHUNK)
            .saturating_add(2 * square + 2 * CHUNK * WIDE + 3 * (CHUNK + PAD) + 2 * WIDE)
    }

    /// # Safety
    /// `memory` is as long as `floats` says.
    unsafe fn new(op: &SsmScan, heads: usize, memory: *mut f32) -> Tiles {
        let n = padded(op.b.dim(0));
        let mut at = memory;
        let mut take = |floats: usize| {
            let tile = at;
            // SAFETY: the lengths add up to the whole.
            at = unsafe { at.add(floats) };
            tile
        };
        Tiles {
            states: take(heads * n * WIDE),
            b: take(CHUNK * n),
            c: take(CHUNK * n),
            b_turned: take(CHUNK * n),
            g: take(CHUNK * CHUNK + PAD),
            m: take(CHUNK * CHUNK + PAD),
            x: take(CHUNK * WIDE),
            y: take(CHUNK * WIDE),
            delta: take(CHUNK + PAD),
            sums: take(CHUNK + PAD),
            decays: take(CHUNK + PAD),
            last: take(WIDE),
            row: take(WIDE),
        }
    }
}

/// What a task works on: some heads of a group in a sequence, and columns of their states.
struct Scan<'a, 'b> {
    op: &'a SsmScan,
    args: &'a Args<'b>,
    tiles: Tiles,
    sequence: usize,
    group: usize,
    column: usize,
}

/// # Safety
/// The columns of the heads' states are this call's alone.
#[inline(always)]
unsafe fn scan<S: Simd>(s: S, scan: &Scan, heads: std::ops::Range<usize>) {
    let (_, t, ..) = scan.op.dims();
    // SAFETY: chunks lie inside the sequence, heads inside the group.
    unsafe {
        scan.states::<S, true>(s, heads.clone());
        for first in (0..t).step_by(CHUNK) {
            let rows = CHUNK.min(t - first);
            scan.share(s, first, rows);
            for (i, head) in heads.clone().enumerate() {
                scan.head(s, (head, i), first, rows);
            }
        }
        scan.states::<S, false>(s, heads);
    }
}

impl Scan<'_, '_> {
    /// Columns of the state, whole vectors of them.
    #[inline(always)]
    fn width<S: Simd>(&self, _: S) -> usize {
        self.count().next_multiple_of(S::LANES)
    }

    #[inline(always)]
    fn count(&self) -> usize {
        WIDE.min(self.op.x.dim(0) - self.column)
    }

    /// Turns the heads' states in, or out again.
    #[inline(always)]
    unsafe fn states<S: Simd, const IN: bool>(&self, s: S, heads: std::ops::Range<usize>) {
        let (_, _, all, p, _, n) = self.op.dims();
        let (wide, tiles) = (padded(n), &self.tiles);
        let state = self.args.get("state");
        // SAFETY: squares lie inside the padded tiles, rows inside the state.
        unsafe {
            for (i, head) in heads.enumerate() {
                let held = tiles.states.add(i * wide * WIDE);
                let Some(state) = &state else {
                    if IN {
                        held.write_bytes(0, wide * WIDE);
                    }
                    continue;
                };
                let row = |i: usize| Row::of(state, (self.sequence * all + head) * p + self.column + i);
                if IN {
                    tiles.b.write_bytes(0, WIDE * wide);
                    for i in 0..self.count() {
                        row(i).load(s, n, tiles.b.add(i * wide));
                    }
                }
                for j in (0..wide).step_by(S::LANES) {
                    for i in (0..WIDE).step_by(S::LANES) {
                        let (plain, turned) = (tiles.b.add(i * wide + j), held.add(j * WIDE + i));
                        if IN {
                            s.transpose(plain, wide, turned, WIDE);
                        } else {
                            s.transpose(turned, WIDE, plain, wide);
                        }
                    }
                }
                for i in 0..if IN { 0 } else { self.count() } {
                    row(i).store(s, n, tiles.b.add(i * wide));
                }
            }
        }
    }

    /// B, C and G of a chunk.
    #[inline(always)]
    unsafe fn share<S: Simd>(&self, s: S, first: usize, rows: usize) {
        let (_, t, _, _, groups, n) = self.op.dims();
        let (wide, tiles) = (padded(n), &self.tiles);
        let (b, c) = (self.args.of("b"), self.args.of("c"));
        // SAFETY: rows of the chunk exist; tiles are padded.
        unsafe {
            tiles.b.write_bytes(0, CHUNK * wide);
            for i in 0..rows {
                let row = (self.sequence * t + first + i) * groups + self.group;
                Row::of(&b, row).load(s, n, tiles.b.add(i * wide));
                Row::of(&c, row).load(s, n, tiles.c.add(i * wide));
            }
            for i in (0..CHUNK).step_by(S::LANES) {
                for j in (0..wide).step_by(S::LANES) {
                    s.transpose(tiles.b.add(i * wide + j), wide, tiles.b_turned.add(j * CHUNK + i), CHUNK);
                }
            }
            for i in (0..rows).step_by(STAIR) {
                let left = Left { pointer: tiles.c.add(i * wide), row: wide, column: 1 };
                let out = Rows { pointer: tiles.g.add(i * CHUNK), stride: CHUNK };
                let size = (STAIR.min(rows - i), i + STAIR, n);
                multiply(s, size, left, Rows { pointer: tiles.b_turned, stride: CHUNK }, out, Start::Zero);
            }
        }
    }

    /// A chunk of a head, which is the task's `i`-th.
    #[inline(always)]
    unsafe fn head<S: Simd>(&self, s: S, (head, i): (usize, usize), first: usize, rows: usize) {
        let (tiles, time) = (&self.tiles, self.sequence * self.op.x.dim(2) + first);
        let (a, bias) = (number(self.args.get("a"), head), number(self.args.get("dt_bias"), head));
        // SAFETY: the chunk's rows exist; lists are padded.
        unsafe {
            Row::down(&self.args.of("dt"), time, head).load(s, rows, tiles.delta);
            for i in (0..rows).step_by(S::LANES) {
                let delta = tiles.delta.add(i);
                s.store(delta, time_step(s, self.op, s.load(delta), bias));
            }
            let mut from = 0;
            while from < rows {
                let (mut to, mut sum, mut growth) = (from, 0f64, 0f64);
                while to < rows {
                    let log = *tiles.delta.add(to) * a;
                    // Keeps NaN. Infinite are steps that f32 does not hold: their exponentials are NaN.
                    let log = f64::from(if log < DECAY {
                        DECAY
                    } else if log > MOST {
                        f32::INFINITY
                    } else {
                        log
                    });
                    growth += log.max(0.0);
                    if growth > GROWTH && to > from {
                        break;
                    }
                    sum += log;
                    *tiles.sums.add(to) = sum as f32;
                    to += 1;
                }
                self.piece(s, (head, i), first, (from, to - from));
                from = to;
            }
        }
    }

    /// `count` rows of a chunk of a head, from row `from` on.
    #[inline(always)]
    unsafe fn piece<S: Simd>(&self, s: S, (head, i): (usize, usize), first: usize, (from, count): (usize, usize)) {
        let (_, t, heads, _, _, n) = self.op.dims();
        let (wide, width, tiles) = (padded(n), self.width(s), &self.tiles);
        let Tiles { m, decays, last, .. } = *tiles;
        let (x, out) = (self.args.of("x"), self.args.of("out"));
        let skip = s.splat(number(self.args.get("d"), head));
        let step = |tensor: &Tensor| tensor.spec.stride(2);
        // SAFETY: tiles are padded by a vector, and products keep to the rows that are filled.
        unsafe {
            let row = (self.sequence * t + first + from) * heads + head;
            let (x_first, out_first) = (Row::part(&x, row, self.column), Row::part(&out, row, self.column));
            let (delta, sums) = (tiles.delta.add(from), tiles.sums.add(from));
            let total = s.splat(*sums.add(count - 1));
            for i in 0..count {
                let (from, to) = (x_first.ahead(i * step(&x)).read(s, self.count(), tiles.row), tiles.x.add(i * WIDE));
                let factor = s.splat(*delta.add(i));
                for j in (0..width).step_by(S::LANES) {
                    s.store(to.add(j), s.mul(factor, s.load(from.add(j))));
                }
            }
            let bytes = |tensor: &Tensor| tensor.dtype().block().1;
            let (x_bytes, out_bytes) = (step(&x) * bytes(&x), step(&out) * bytes(&out));
            let row_bytes = self.count() * bytes(&x);
            // M, and the decay since the chunk's beginning.
            let lanes: [f32; PAD] = std::array::from_fn(|i| i as f32);
            let lanes = s.load(lanes.as_ptr());
            for i in (0..count).step_by(S::LANES) {
                s.store(decays.add(i), math::exp_flushed(s, s.load(sums.add(i))));
            }
            for i in 0..count {
                let (sum, end) = (s.splat(*sums.add(i)), (i / STAIR + 1) * STAIR);
                let g = tiles.g.add((from + i) * CHUNK + from);
                // Rows of x and out lie far apart: nothing but this sees the next ones coming.
                prefetch(s, x_first.pointer().wrapping_add(x_bytes * (CHUNK + i)), row_bytes);
                prefetch(s, out_first.pointer().wrapping_add(out_bytes * i), row_bytes);
                for j in (0..end).step_by(S::LANES) {
                    let decay = math::exp_flushed(s, s.sub(sum, s.load(sums.add(j))));
                    let seen = s.lt(lanes, s.splat((i + 1) as f32 - j as f32));
                    s.store(m.add(i * CHUNK + j), s.select(seen, s.mul(decay, s.load(g.add(j))), s.zero()));
                }
            }
            let held = Rows { pointer: tiles.states.add(i * wide * WIDE), stride: WIDE };
            let (x_tile, y) = (Rows { pointer: tiles.x, stride: WIDE }, Rows { pointer: tiles.y, stride: WIDE });
            let c = Left { pointer: tiles.c.add(from * wide), row: wide, column: 1 };
            multiply(s, (count, width, n), c, held, y, Start::Zero);
            for i in (0..count).step_by(STAIR) {
                let left = Left { pointer: m.add(i * CHUNK), row: CHUNK, column: 1 };
                let size = (STAIR.min(count - i), width, count.min(i + STAIR));
                multiply(s, size, left, x_tile, y.from(i), Start::RowFactors(decays.add(i)));
            }
            for i in 0..count {
                let (x, y) = (x_first.ahead(i * step(&x)).read(s, self.count(), tiles.row), tiles.y.add(i * WIDE));
                let out = out_first.ahead(i * step(&out));
                let to = out.place(s, self.count(), tiles.row);
                for j in (0..width).step_by(S::LANES) {
                    s.store(to.add(j), s.fma(skip, s.load(x.add(j)), s.load(y.add(j))));
                }
                out.put(s, self.count(), to);
            }
            // The state after the piece.
            for i in (0..count).step_by(S::LANES) {
                s.store(decays.add(i), math::exp_flushed(s, s.sub(total, s.load(sums.add(i)))));
            }
            for i in 0..count {
                let (row, factor) = (tiles.x.add(i * WIDE), s.splat(*decays.add(i)));
                for j in (0..width).step_by(S::LANES) {
                    s.store(row.add(j), s.mul(factor, s.load(row.add(j))));
                }
            }
            for j in (0..width).step_by(S::LANES) {
                s.store(last.add(j), math::exp_flushed(s, total));
            }
            let b = Left { pointer: tiles.b_turned.add(from), row: CHUNK, column: 1 };
            multiply(s, (n, width, count), b, x_tile, held, Start::Columns(last));
        }
    }
}

/// Asks for the lines of a run of bytes.
#[inline(always)]
fn prefetch<S: Simd>(s: S, from: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(64) {
        s.prefetch(from.wrapping_add(at));
    }
}

/// [`product`] as a function of its own: it is large.
///
/// # Safety
/// As for it.
#[inline(always)]
unsafe fn multiply<S: Simd>(s: S, size: (usize, usize, usize), a: Left, b: Rows, c: Rows, start: Start) {
    s.outline(
        #[inline(always)]
        // SAFETY: the caller's promise.
        || unsafe { product(s, size, a, b, c, start) },
    )
}
