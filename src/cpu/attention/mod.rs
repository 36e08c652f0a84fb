//! Attention with an online softmax: a tile of query rows meets the keys tile by tile.
//!
//! A tile's rows are the rows of all query heads that share a kv head, so that keys and values are read (and decoded) once for
//! all of them. Tasks are (some tiles, kv head, range of keys); there is more than one range where few queries meet a long cache, and
//! then a second pass merges their partial results in order. See [`tile`] for the arithmetic.

mod few;
mod place;
mod tile;
mod weights;

use std::{ops::Range, sync::Arc};

use self::{
    few::tiles_of_few,
    tile::{Buffers, Done, KEYS, ROWS, tiles},
};
use super::{
    Device,
    kernel::{Args, Kernel, Tensor},
    pool::Pool,
    row::{PAD, Row, padded},
    simd::{Simd, simd},
};
use crate::{
    backend::Plans,
    error::{Error, Result},
    op::{Attention, Determinism, Features, attention::Sizes},
};

/// Tiles of a task at most.
const TILES: usize = 4;
/// Tasks that a short job is cut into by splitting its keys.
const TASKS: usize = 64;
/// Keys that are worth a task of their own.
const RANGE: usize = 256;

pub(super) fn plan(device: &Arc<Device>, op: &Attention) -> Result<Plans> {
    let op = *op;
    let sizes = op.sizes();
    if sizes.q_len + sizes.capacity > 1 << 30 {
        return Err(Error::unsupported(op, "distances beyond 2^30 do not fit this kernel's integers"));
    }
    // All but what other operations own.
    let known = Features::STRIDED
        | Features::BROADCAST
        | Features::BATCH
        | Features::SCALE
        | Features::CAUSAL
        | Features::WINDOW
        | Features::SOFTCAP
        | Features::ALIBI
        | Features::MASK
        | Features::KEY_MASK
        | Features::SINKS
        | Features::LSE
        | Features::VARLEN
        | Features::PAGED
        | Features::LENGTHS;
    let kernel = Kernel::new(device, op, format_args!("attention-{}-{}", op.q.dtype(), op.k.dtype()), known)?;
    let job = Job::new(op, device.info.threads);
    let floats = |n: usize| n.saturating_mul(size_of::<f32>());
    let (floats_each, partial) = (Buffers::floats(&job), job.partial());
    let partials = if job.splits > 1 { job.tiles * sizes.kv_heads * job.splits * partial } else { 0 };
    let scratch = floats(floats_each.saturating_mul(device.info.threads).saturating_add(partials));
    let promised = if job.invariant { Determinism::BatchInvariant } else { Determinism::ThreadCount };
    let threads = device.info.threads;
    kernel.determinism(promised).scratch(scratch).plan(move |args: &Args, pool: &mut Pool| {
        let parts = job.tiles * sizes.kv_heads;
        let groups = sizes.kv_heads.div_ceil(job.heads);
        let tasks = job.tiles * groups;
        job.clear(args, pool);
        pool.run(tasks * job.splits.div_ceil(job.ranges), |task, thread| {
            // Long rows come last: begin with them. Heads go side by side: their keys share pages and what is read ahead.
            let (tile, group) = (job.tiles - 1 - task % tasks / groups, task % groups);
            let heads = group * job.heads..sizes.kv_heads.min((group + 1) * job.heads);
            let splits = task / tasks * job.ranges..job.splits.min((task / tasks + 1) * job.ranges);
            let Some(work) = job.work(args, tile * sizes.kv_heads + heads.start) else { return };
            // SAFETY: each thread has its own buffers, each task its own partial results, and rows are one task's alone.
            simd!(args.isa, s => unsafe {
                let memory = args.scratch::<f32>();
                let own = memory.add(thread * floats_each);
                let (few, until) = (job.few(s, work.rows), splits.end * job.range);
                for split in splits {
                    let keys = split * job.range..(split + 1) * job.range;
                    if few {
                        tiles_of_few(s, &job, args, (&work, heads.clone()), (keys.clone(), until), own);
                    }
                    for (i, head) in heads.clone().enumerate() {
                        let work = work.of_head(head);
                        if !few {
                            tiles(s, &job, args, &work, keys.clone(), own);
                        }
                        let of = tile * sizes.kv_heads + head;
                        let to = memory.add(threads * floats_each + (of * job.splits + split) * partial);
                        for t in 0..work.tiles() {
                            let (tile, mut buffers) = (work.tile(t), Buffers::new(&job, own, if few { i } else { t }));
                            buffers.turn(s, &job, few, tile.rows);
                            for r in 0..tile.rows {
                                let done = buffers.done(&job, r);
                                if job.splits == 1 {
                                    finish(s, &job, args, &tile, r, done);
                                } else {
                                    done.save(&job, to, t * ROWS + r);
                                }
                            }
                        }
                    }
                }
            });
        });
        if job.splits > 1 {
            pool.run(parts, |of, thread| {
                let Some(work) = job.work(args, of) else { return };
                // SAFETY: as above; the partial results are complete.
                simd!(args.isa, s => unsafe {
                    let memory = args.scratch::<f32>();
                    let row = Buffers::new(&job, memory.add(thread * floats_each), 0).row;
                    let from = memory.add(threads * floats_each + of * job.splits * partial);
                    for r in 0..work.rows {
                        let done = merge(s, &job, from, r, row);
                        finish(s, &job, args, &work, r, done);
                    }
                });
            });
        }
    })
}

/// An attention as it is cut up; by its shape alone, whatever the number of threads.
pub(super) struct Job {
    op: Attention,
    sizes: Sizes,
    group: usize,
    /// Rows of a task at most: of several tiles where there are enough tasks all the same.
    rows: usize,
    /// Tasks at most, but for kv heads and ranges of keys.
    tiles: usize,
    /// Ranges of keys, and the keys of each.
    splits: usize,
    range: usize,
    /// Kv heads and ranges of a task, more than one only of few rows. Neither changes a bit, so they may depend on the number of threads.
    heads: usize,
    ranges: usize,
    /// Every row must be computed the same way however many there are.
    invariant: bool,
}

impl Job {
    fn new(op: Attention, threads: usize) -> Job {
        let sizes = op.sizes();
        let group = sizes.heads.checked_div(sizes.kv_heads).unwrap_or(0);
        let all = sizes.q_len * group;
        let tiles = all.div_ceil(ROWS) * sizes.kv_heads * if op.q_offsets.is_some() { 1 } else { sizes.batch };
        let rows = all.clamp(1, ROWS * (tiles / TASKS).clamp(1, TILES));
        let tiles = match (all, op.q_offsets) {
            (0, _) => 0,
            (_, Some(_)) => all.div_ceil(rows) + sizes.batch,
            (_, None) => all.div_ceil(rows) * sizes.batch,
        };
        let invariant = op.determinism == Determinism::BatchInvariant;
        let wanted = (TASKS / (tiles * sizes.kv_heads).max(1)).min(sizes.capacity.div_ceil(RANGE));
        let splits = if invariant { 1 } else { wanted.max(1) };
        let range = sizes.capacity.div_ceil(splits).next_multiple_of(KEYS);
        let few = rows * 2 <= PAD && !invariant;
        let each = if few { tiles * sizes.kv_heads * splits / (4 * threads).max(1) } else { 1 };
        let heads = each.clamp(1, sizes.kv_heads.max(1));
        let ranges = (each / heads).clamp(1, splits);
        Job { op, sizes, group, rows, tiles, splits, range, heads, ranges, invariant }
    }

    /// Floats of a task's partial result: maximum, sum and values of each row.
    fn partial(&self) -> usize {
        self.rows * (PAIR + padded(self.sizes.dv))
    }

    /// Row `r` of a tile: the query row's number in its sequence, and its head.
    fn row(&self, work: &Work, r: usize) -> (usize, usize) {
        let at = work.first + r;
        (at / self.group, work.kv_head * self.group + at % self.group)
    }

    /// What a (tile, kv head) is about; `None` where the tile was not needed.
    fn work(&self, args: &Args, of: usize) -> Option<Work> {
        let Sizes { batch, q_len, capacity, kv_heads, .. } = self.sizes;
        let (mut tile, kv_head) = (of / kv_heads, of % kv_heads);
        let work = |b: usize, tile: usize, queries: Range<usize>, keys: Range<usize>| {
            let rows = (queries.len() * self.group).checked_sub(tile * self.rows).filter(|&n| n > 0)?;
            Some(Work { batch: b, kv_head, first: tile * self.rows, rows: rows.min(self.rows), queries, keys })
        };
        let Some(offsets) = args.get("q_offsets") else {
            // Sequences side by side, so that the longest rows of all of them come together.
            let b = tile % batch;
            let queries = b * q_len..b * q_len + length(args.get("q_len"), b, q_len);
            return work(b, tile / batch, queries, 0..length(args.get("kv_len"), b, capacity));
        };
        let key_offsets = args.get("kv_offsets");
        let (mut start, mut first_key) = (0, 0);
        for b in 0..batch + 1 {
            let end = start.max(length(Some(offsets), b, q_len));
            let last_key = first_key.max(length(key_offsets, b, capacity));
            if b > 0 {
                let tiles = ((end - start) * self.group).div_ceil(self.rows);
                if tile < tiles {
                    let keys = match key_offsets {
                        Some(_) => first_key..last_key,
                        None => 0..length(args.get("kv_len"), b - 1, capacity),
                    };
                    return work(b - 1, tile, start..end, keys);
                }
                tile -= tiles;
            }
            (start, first_key) = (end, last_key);
        }
        None
    }

    /// Zeros for the rows that are in no sequence, or beyond its length.
    fn clear(&self, args: &Args, pool: &mut Pool) {
        let Sizes { batch, q_len, heads, dv, .. } = self.sizes;
        let (offsets, lengths) = (args.get("q_offsets"), args.get("q_len"));
        if offsets.is_none() && lengths.is_none() {
            return;
        }
        let rows = if offsets.is_some() { q_len } else { batch * q_len };
        let bounds = offsets.map(|offsets| {
            let all = (0..batch + 1).map(|b| length(Some(offsets), b, q_len));
            (length(Some(offsets), 0, q_len), all.max().unwrap_or(0))
        });
        let (out, lse) = (args.of("out"), args.get("lse"));
        const EACH: usize = 64;
        pool.run(rows.div_ceil(EACH), |task, _| {
            for row in task * EACH..rows.min((task + 1) * EACH) {
                let inside = match bounds {
                    Some((start, end)) => (start..end).contains(&row),
                    None => row % q_len < length(lengths, row / q_len, q_len),
                };
                if inside {
                    continue;
                }
                for h in 0..heads {
                    for i in (0..dv).step_by(EACH) {
                        let (part, n) = (Row::part(&out, row * heads + h, i), EACH.min(dv - i));
                        // SAFETY: the elements exist, and no other task has this row.
                        simd!(args.isa, s => unsafe { part.store(s, n, [0f32; EACH].as_ptr()) });
                    }
                    if let Some(lse) = &lse {
                        // SAFETY: as above.
                        unsafe { *self.lse_at(lse, row, h) = f32::NEG_INFINITY };
                    }
                }
            }
        });
    }

    /// Where the log-sum-exp of query row `row` (counted over all sequences) and head `h` goes.
    fn lse_at(&self, lse: &Tensor, row: usize, h: usize) -> *mut f32 {
        let Sizes { q_len, heads, .. } = self.sizes;
        match self.op.q_offsets {
            Some(_) => lse.at(h, row),
            None => lse.at(row / q_len * heads + h, row % q_len),
        }
    }
}

/// Query rows of one sequence, times the heads of one kv head.
pub(super) struct Work {
    batch: usize,
    kv_head: usize,
    /// First row, counted through the sequence's query rows and, innermost, the group's heads.
    first: usize,
    rows: usize,
    /// The sequence's query rows, counted over all sequences.
    queries: Range<usize>,
    /// The sequence's valid keys; they begin above 0 in varlen keys only.
    keys: Range<usize>,
}

impl Work {
    fn tiles(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// The rows of tile `t`.
    fn tile(&self, t: usize) -> Work {
        let rows = (self.rows - t * ROWS).min(ROWS);
        Work { first: self.first + t * ROWS, rows, queries: self.queries.clone(), keys: self.keys.clone(), ..*self }
    }

    /// The same rows of another head.
    fn of_head(&self, kv_head: usize) -> Work {
        Work { kv_head, queries: self.queries.clone(), keys: self.keys.clone(), ..*self }
    }

    /// The position of the sequence's query row `i`.
    fn position(&self, i: usize) -> i64 {
        self.keys.len() as i64 - self.queries.len() as i64 + i as i64
    }
}

/// An element of a list of lengths or offsets, clamped; without the list, the most.
pub(super) fn length(list: Option<Tensor>, i: usize, most: usize) -> usize {
    let Some(list) = list else { return most };
    // SAFETY: the list is i32, and i below its length.
    let n = unsafe { *list.pointer::<i32>().add(i * list.spec.stride(0)) };
    usize::try_from(n).unwrap_or(0).min(most)
}

/// Floats that hold a row's maximum and sum, and keep what follows aligned.
const PAIR: usize = 16;

impl Done {
    /// # Safety
    /// `to` is a partial result, and row `r` of it this call's alone.
    #[inline(always)]
    unsafe fn save(self, job: &Job, to: *mut f32, r: usize) {
        let wide = PAIR + padded(job.sizes.dv);
        // SAFETY: row r lies inside.
        unsafe {
            let to = to.add(r * wide);
            (*to, *to.add(1)) = (self.largest, self.sum);
            std::ptr::copy_nonoverlapping(self.values, to.add(PAIR), job.sizes.dv);
        }
    }
}

/// Adds up row `r` of the partial results of all ranges, in order, into `row`.
///
/// # Safety
/// `from` holds them; `row` is padded for a row of values.
#[inline(always)]
unsafe fn merge<S: Simd>(s: S, job: &Job, from: *const f32, r: usize, row: *mut f32) -> Done {
    let (dv, wide) = (job.sizes.dv, PAIR + padded(job.sizes.dv));
    // SAFETY: inside the partial results, which are padded to whole vectors.
    unsafe {
        let mut largest = f32::NEG_INFINITY;
        for split in 0..job.splits {
            largest = largest.max(*from.add(split * job.partial() + r * wide));
        }
        let shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let mut sum = 0.0;
        row.write_bytes(0, padded(dv));
        for split in 0..job.splits {
            let part = from.add(split * job.partial() + r * wide);
            let factor = (*part - shift).exp();
            sum += *part.add(1) * factor;
            for i in (0..dv).step_by(S::LANES) {
                let y = s.fma(s.splat(factor), s.load(part.add(PAIR + i)), s.load(row.add(i)));
                s.store(row.add(i), y);
            }
        }
        Done { largest, sum, values: row }
    }
}

/// Adds the sink, divides, and writes row `r` of a tile.
///
/// # Safety
/// The row exists and is this call's alone.
#[inline(always)]
unsafe fn finish<S: Simd>(s: S, job: &Job, args: &Args, work: &Work, r: usize, done: Done) {
    let (i, h) = job.row(work, r);
    let (dv, row) = (job.sizes.dv, work.queries.start + i);
    // SAFETY: sinks are f32, one for each head.
    let sink = args.get("sinks").map(|t| unsafe { *t.pointer::<f32>().add(h * t.spec.stride(0)) });
    let (factor, lse) = if done.sum == 0.0 {
        (0.0, sink.unwrap_or(f32::NEG_INFINITY))
    } else {
        let sink = sink.unwrap_or(f32::NEG_INFINITY);
        let largest = done.largest.max(sink);
        let own = (done.largest - largest).exp();
        let sum = done.sum * own + (sink - largest).exp();
        (own / sum, largest + sum.ln())
    };
    // SAFETY: the values are padded; out has the row.
    unsafe {
        for i in (0..dv).step_by(S::LANES) {
            let at = done.values.add(i);
            s.store(at, s.mul(s.load(at), s.splat(factor)));
        }
        Row::of(&args.of("out"), row * job.sizes.heads + h).store(s, dv, done.values);
        if let Some(t) = args.get("lse") {
            *job.lse_at(&t, row, h) = lse;
        }
    }
}
