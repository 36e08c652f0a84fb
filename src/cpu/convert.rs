//! Copies to any dtype and layout. Dimensions are put into the output's order and joined where both sides are dense, so that most
//! copies are rows; where the input runs along another dimension than the output, both are walked in tiles that stay in
//! the cache.

use std::{cmp::Reverse, sync::Arc};

use arrayvec::ArrayVec;

use super::{
    Device,
    decode::decode_strided,
    encode::encode,
    kernel::{Args, Kernel},
    pool::Pool,
    simd::{Simd, simd},
};
use crate::{
    backend::Plans,
    dtype::DType,
    error::Result,
    layout::MAX_RANK,
    op::{Convert, Determinism, Features},
};

/// Elements of a task, in a row.
const TASK: usize = 1 << 14;
/// Elements of a buffer: whole blocks of any format.
const STRETCH: usize = 512;
/// A task's tile where the input runs across the output: whole blocks along the input, a cache line of f32 and more along the output.
const TILE: (usize, usize) = (256, 64);
/// Columns of a tile that are in the buffer at a time.
const COLUMNS: usize = 16;
/// Distance of the buffer's columns: not a power of two, which would crowd them into a few sets of the cache.
const PITCH: usize = TILE.0 + 16;

pub(super) fn plan(device: &Arc<Device>, op: &Convert) -> Result<Plans> {
    let (from, to) = (op.x.dtype(), op.out.dtype());
    let name = format_args!("convert-{from}-{to}");
    let kernel = Kernel::new(device, *op, name, Features::STRIDED)?.determinism(Determinism::BatchInvariant);
    let Walk { outer, i, j, across } = Walk::new(op);
    let (rows, columns) = if across { TILE } else { ((TASK / j.n.max(1)).max(1), TASK) };
    let (parts_i, parts_j) = (i.n.div_ceil(rows), j.n.div_ceil(columns));
    let tasks = outer.iter().map(|a| a.n).product::<usize>() * parts_i * parts_j;
    // Blocks that are only copied count as bytes.
    let unit = if from == to && from.is_quantized() { DType::U8 } else { from };
    kernel.plan(move |args: &Args, pool: &mut Pool| {
        let (x, out) = (args.of("x"), args.of("out"));
        pool.run(tasks, |task, _| {
            let (i0, j0) = (task / parts_j % parts_i * rows, task % parts_j * columns);
            let (mut at_x, mut at_out) = (i0 * i.x + j0 * j.x, i0 * i.out + j0 * j.out);
            let mut rest = task / parts_j / parts_i;
            for a in outer.iter().rev() {
                at_x += rest % a.n * a.x;
                at_out += rest % a.n * a.out;
                rest /= a.n;
            }
            let tile = Tile {
                // SAFETY: it lies inside the operand, at the beginning of a block.
                x: unsafe { at(x.pointer(), if from == to { unit } else { from }, at_x) },
                // SAFETY: as above.
                out: unsafe { at(out.pointer(), if from == to { unit } else { to }, at_out) },
                i: Axis { n: rows.min(i.n - i0), ..i },
                j: Axis { n: columns.min(j.n - j0), ..j },
            };
            // SAFETY: the tile lies inside the operands, and no other task writes its elements.
            unsafe {
                match unit.block().1 {
                    _ if from != to && across => simd!(args.isa, s => tile.convert_across(s, from, to)),
                    _ if from != to => simd!(args.isa, s => tile.convert_rows(s, from, to)),
                    1 => tile.copy::<u8>(),
                    2 => tile.copy::<u16>(),
                    _ => tile.copy::<u32>(),
                }
            }
        });
    })
}

/// The element `offset` elements (whole blocks) on.
///
/// # Safety
/// It lies inside what `pointer` points at.
unsafe fn at(pointer: *mut u8, dtype: DType, offset: usize) -> *mut u8 {
    let (elements, bytes) = dtype.block();
    // SAFETY: the caller's promise.
    unsafe { pointer.add(offset / elements * bytes) }
}

/// A dimension: its extent and both strides in elements (in bytes where blocks are only copied).
#[derive(Clone, Copy)]
struct Axis {
    n: usize,
    x: usize,
    out: usize,
}

/// How a copy goes: `j` innermost, around it `i`, around that the others.
struct Walk {
    outer: ArrayVec<Axis, MAX_RANK>,
    i: Axis,
    j: Axis,
    /// The input runs along `i`.
    across: bool,
}

impl Walk {
    fn new(op: &Convert) -> Walk {
        let (x, out) = (&op.x, &op.out);
        let mut axes: ArrayVec<Axis, MAX_RANK> =
            (0..x.rank()).rev().map(|d| Axis { n: x.dim(d), x: x.stride(d), out: out.stride(d) }).collect();
        let (elements, bytes) = x.dtype().block();
        if x.dtype() == out.dtype() && elements > 1 {
            let last = axes.len() - 1;
            for (d, a) in axes.iter_mut().enumerate() {
                let scale = |v: usize| v / elements * bytes;
                *a = match d == last {
                    true => Axis { n: scale(a.n), x: 1, out: 1 },
                    false => Axis { n: a.n, x: scale(a.x), out: scale(a.out) },
                };
            }
        }
        axes.retain(|a| a.n != 1);
        axes.sort_unstable_by_key(|a| Reverse(a.out));
        let mut joined: ArrayVec<Axis, MAX_RANK> = ArrayVec::new();
        for a in axes {
            match joined.last_mut() {
                Some(o) if o.x == a.x * a.n && o.out == a.out * a.n => *o = Axis { n: o.n * a.n, ..a },
                _ => joined.push(a),
            }
        }
        const ONE: Axis = Axis { n: 1, x: 1, out: 1 };
        let j = joined.pop().unwrap_or(ONE);
        // Blocks of the output are whole along j, blocks of the input along the axis whose stride is 1.
        let shorter = |a: &Axis| a.x > 0 && (a.x < j.x || j.x == 0 && x.dtype().is_quantized());
        let best = (0..joined.len()).filter(|&d| shorter(&joined[d])).min_by_key(|&d| joined[d].x);
        match best.filter(|_| !out.dtype().is_quantized()) {
            Some(d) => Walk { i: joined.remove(d), j, outer: joined, across: true },
            None => Walk { i: joined.pop().unwrap_or(ONE), j, outer: joined, across: false },
        }
    }
}

/// A part of the copy, from where it begins.
struct Tile {
    x: *mut u8,
    out: *mut u8,
    i: Axis,
    j: Axis,
}

impl Tile {
    /// # Safety
    /// `T` is the size of an element on both sides; the tile lies inside the operands.
    unsafe fn copy<T: Copy>(&self) {
        let (x, out) = (self.x.cast::<T>(), self.out.cast::<T>());
        for i in 0..self.i.n {
            // SAFETY: the caller's promise.
            unsafe {
                let (x, out) = (x.add(i * self.i.x), out.add(i * self.i.out));
                if (self.j.x, self.j.out) == (1, 1) {
                    std::ptr::copy_nonoverlapping(x, out, self.j.n);
                } else {
                    (0..self.j.n).for_each(|j| *out.add(j * self.j.out) = *x.add(j * self.j.x));
                }
            }
        }
    }

    /// # Safety
    /// The dtypes are the operands', the tile lies inside them.
    #[inline(always)]
    unsafe fn convert_rows<S: Simd>(&self, s: S, from: DType, to: DType) {
        let mut buffer = [0f32; STRETCH];
        for i in 0..self.i.n {
            // SAFETY: the caller's promise; stretches are whole blocks and fit the buffer.
            unsafe {
                let (x, out) = (at(self.x, from, i * self.i.x), at(self.out, to, i * self.i.out));
                if from == DType::F32 && self.j.x == 1 {
                    encode(s, to, x.cast(), out, self.j.out, self.j.n);
                    continue;
                }
                if to == DType::F32 && self.j.out == 1 {
                    decode_strided(s, from, x, self.j.x, out.cast(), self.j.n);
                    continue;
                }
                let mut j = 0;
                while j < self.j.n {
                    let n = STRETCH.min(self.j.n - j);
                    decode_strided(s, from, at(x, from, j * self.j.x), self.j.x, buffer.as_mut_ptr(), n);
                    encode(s, to, buffer.as_ptr(), at(out, to, j * self.j.out), self.j.out, n);
                    j += n;
                }
            }
        }
    }

    /// # Safety
    /// As for `convert_rows`; the tile is at most [`TILE`], the output's elements are single.
    #[inline(always)]
    unsafe fn convert_across<S: Simd>(&self, s: S, from: DType, to: DType) {
        let (mut columns, mut line) = ([0f32; PITCH * COLUMNS], [0f32; COLUMNS]);
        let mut j = 0;
        while j < self.j.n {
            let n = COLUMNS.min(self.j.n - j);
            // SAFETY: the caller's promise; i and n stay below the buffer's extents.
            unsafe {
                for c in 0..n {
                    let x = at(self.x, from, (j + c) * self.j.x);
                    decode_strided(s, from, x, self.i.x, columns.as_mut_ptr().add(c * PITCH), self.i.n);
                }
                for i in 0..self.i.n {
                    for (c, v) in line.iter_mut().enumerate().take(n) {
                        *v = *columns.get_unchecked(c * PITCH + i);
                    }
                    let out = at(self.out, to, i * self.i.out + j * self.j.out);
                    encode(s, to, line.as_ptr(), out, self.j.out, n);
                }
            }
            j += n;
        }
    }
}
