//! A weight as the kernels read it: rows of any dtype and strides, or packed in panels.
//!
//! The packed form `panel64` of a float weight keeps its dtype and its size:
//!
//! ```text
//! [panel of rows 0..64][panel of rows 64..128] .. [the last rows, fewer: [k][rows]]
//! panel: a block for each 256 of k, of 64 / slice slices [k of the block][slice]
//! ```
//!
//! The slice is the instruction set's ([`tile::slice`]).
//!
//! That of an i8 weight is `quads64`, and a bf16 weight has also `pairs64`: [`words`].

use std::{mem::MaybeUninit, ops::Range};

use super::{
    tile::{self, Ahead, BLOCK, PANEL},
    words,
};
use crate::{
    backend::Packing,
    cpu::{
        decode::decode_strided,
        kernel::Tensor,
        pool::Pool,
        simd::{Isa, Simd, row, simd},
    },
    dtype::DType,
    layout::Spec,
};

/// Bytes between what is read of a row and what is asked for.
const AHEAD: usize = 1024;

/// One matrix `[n, k]` of a weight operand.
#[derive(Clone, Copy)]
pub(crate) struct Weight<'a> {
    pub(crate) tensor: Tensor<'a>,
    /// Element at which the matrix begins.
    pub(crate) offset: usize,
    /// Elements from a packed row to the next, where it is packed.
    pub(crate) packed: Option<usize>,
    /// f32 scales per 128 x 128 block, multiplied in.
    pub(crate) scales: Option<Tensor<'a>>,
}

impl<'a> Weight<'a> {
    /// Rows.
    pub(crate) fn n(&self) -> usize {
        self.tensor.spec.dim(1)
    }

    /// Columns.
    pub(crate) fn k(&self) -> usize {
        self.tensor.spec.dim(0)
    }

    /// Element `e` of the operand's memory, which begins a block in a quantized type.
    pub(super) fn element<T>(&self, e: usize) -> *const T {
        let (elements, bytes) = self.tensor.dtype().block();
        // SAFETY: callers name existing elements, or the end.
        unsafe { self.tensor.pointer::<u8>().add((self.offset + e) / elements * bytes).cast() }
    }

    /// The panel that begins with row `j`, from its k-th element on, where it lies in memory as the tile reads it.
    pub(super) fn ready_panel<T>(&self, j: usize, k: usize) -> Option<*const T> {
        (self.packed.is_some() && self.n() - j >= PANEL).then(|| self.element(j * self.k() + k * PANEL))
    }

    /// The memory of rows `j .. j + 64`, elements `k` of each, where a kernel does well to ask for it before it reads them.
    pub(super) fn ahead(&self, j: usize, k: Range<usize>) -> Ahead {
        let (spec, dtype) = (self.tensor.spec, self.tensor.dtype());
        if j >= self.n() {
            return Ahead::NONE;
        }
        let rows = (self.n() - j).min(PANEL);
        let bytes = |elements: usize| dtype.bytes(elements).unwrap_or(0);
        if let Some(length) = self.packed {
            let block = (length - k.start).min(words::BLOCK);
            if dtype == DType::I8 && k.len() < block {
                // By way of f32: a quarter of a block, so of each of its slices. The first asks for all.
                let run = if k.start.is_multiple_of(words::BLOCK) { block * rows } else { 0 };
                return Ahead { from: self.element(j * length + k.start * rows), run, pitch: 0, runs: 1 };
            }
            let from = self.element::<u8>(j * length + k.start * rows);
            return Ahead { from, run: bytes(k.len() * rows), pitch: 0, runs: 1 };
        }
        if spec.stride(0) != 1 {
            return Ahead::NONE;
        }
        let from = self.element(j * spec.stride(1) + k.start);
        Ahead { from, run: bytes(k.len()), pitch: bytes(spec.stride(1)), runs: rows }
    }

    /// Elements `k` of row `j` as f32. The range begins at a multiple of BLOCK.
    ///
    /// # Safety
    /// The row has these elements, is not packed, and `out` has room for them.
    #[inline(always)]
    pub(super) unsafe fn row<S: Simd>(&self, s: S, j: usize, k: Range<usize>, out: *mut f32) {
        let spec = self.tensor.spec;
        let from: *const u8 = self.element(j * spec.stride(1) + k.start * spec.stride(0));
        for line in (0..self.tensor.dtype().bytes(k.len()).unwrap_or(0)).step_by(64) {
            s.prefetch(from.wrapping_add(AHEAD + line));
        }
        // SAFETY: the caller's promise.
        unsafe {
            decode_strided(s, self.tensor.dtype(), from, spec.stride(0), out, k.len());
            if let Some(scales) = self.scales {
                for at in k.clone().step_by(128) {
                    let scale = *scales.at::<f32>(j / 128, at / 128);
                    (at..k.end.min(at + 128)).for_each(|p| *out.add(p - k.start) *= scale);
                }
            }
        }
    }

    /// Rows `j .. j + 64` (zeros beyond the last), elements `k` of each, as a panel of f32.
    ///
    /// # Safety
    /// The range exists and is at most BLOCK long; `out` has room for a panel of it.
    #[inline(always)]
    pub(super) unsafe fn panel<S: Simd>(&self, s: S, j: usize, k: Range<usize>, out: *mut f32) {
        let (spec, dtype) = (self.tensor.spec, self.tensor.dtype());
        let width = (self.n() - j).min(PANEL);
        // SAFETY: rows j .. j + width exist, p stays inside k, columns inside the panel.
        unsafe {
            if width < PANEL {
                out.write_bytes(0, k.len() * tile::touched::<S>(width));
            }
            if self.packed.is_some() && dtype == DType::I8 {
                return self.quads(s, j, k, width, out);
            }
            if let Some(ready) = self.ready_panel(j, k.start) {
                return row::read(s, dtype, ready, 1, out, k.len() * PANEL);
            }
            let (len, slice) = (k.len(), const { tile::slice::<S>() });
            let across = self.packed.is_none() && dtype.is_float() && spec.stride(1) == 1 && self.scales.is_none();
            if self.packed.is_some() || across {
                for (p, column) in k.clone().flat_map(|p| (0..width).step_by(slice).map(move |c| (p, c))) {
                    let e = if across { j + p * spec.stride(0) } else { j * self.k() + p * width };
                    let to = out.add(tile::column::<S>(len, column) + (p - k.start) * slice);
                    row::read(s, dtype, self.element(e + column), 1, to, slice.min(width - column));
                }
                return;
            }
            let mut rows = [const { MaybeUninit::<[f32; BLOCK]>::uninit() }; 16];
            for column in (0..width).step_by(S::LANES) {
                let some = S::LANES.min(width - column);
                for (i, row) in rows.iter_mut().enumerate().take(some) {
                    self.row(s, j + column + i, k.clone(), row.as_mut_ptr().cast());
                }
                let (from, to) = (rows.as_ptr().cast::<f32>(), out.add(tile::column::<S>(len, column)));
                let mut p = 0;
                if some == S::LANES {
                    while p + S::LANES <= len {
                        s.transpose(from.add(p), BLOCK, to.add(p * slice), slice);
                        p += S::LANES;
                    }
                }
                while p < len {
                    (0..some).for_each(|i| *to.add(p * slice + i) = *from.add(i * BLOCK + p));
                    p += 1;
                }
            }
        }
    }

    /// As `panel`, from `quads64`.
    #[inline(always)]
    unsafe fn quads<S: Simd>(&self, s: S, j: usize, k: Range<usize>, width: usize, out: *mut f32) {
        let (slice, len, length) = (const { tile::slice::<S>() }, k.len(), words::length::<1>(self.k()));
        // Blocks of scales are 128 rows by 128 columns.
        // SAFETY: there is one for each.
        let scale = |at: usize| self.scales.map_or(1.0, |f| unsafe { *f.at::<f32>(j / 128, (k.start + at) / 128) });
        // SAFETY: the caller's promise; the range lies in one block of quads.
        unsafe {
            let panel = self.element::<[i8; 4]>(j * length);
            let first = |column| panel.add(tile::packed::<S>((length / 4, width), k.start / 4, column));
            for column in (0..width).step_by(slice).take_while(|_| width == PANEL) {
                let (from, to) = (first(column), out.add(tile::column::<S>(len, column)));
                let mut at = 0;
                while at < len {
                    let (from, to, scale) = (from.add(at / 4 * slice), to.add(at * slice), s.splat(scale(at)));
                    let mut v = 0;
                    while v < slice {
                        let bytes = s.bits(s.load(from.add(v).cast()));
                        macro_rules! each {
                            ($($i:literal $left:literal;)*) => {$(
                                if at + $i < len {
                                    let x = s.float(s.sar::<24>(s.shl::<$left>(bytes)));
                                    s.store(to.add($i * slice + v), s.mul(x, scale));
                                }
                            )*};
                        }
                        each!(0 24; 1 16; 2 8; 3 0;);
                        v += S::LANES;
                    }
                    at += 4;
                }
            }
            for i in (0..width).take_while(|_| width < PANEL) {
                let (from, to) = (first(i), out.add(tile::column::<S>(len, i)));
                for at in 0..len {
                    *to.add(at * slice) = (*from.add(at / 4 * width))[at % 4] as f32 * scale(at);
                }
            }
        }
    }
}

/// Elements from a packed row to the next, in the forms that [`pack`] makes.
pub(super) fn packed_length(dtype: DType, k: usize) -> usize {
    if dtype == DType::I8 { words::length::<1>(k) } else { k }
}

/// The packed form of a weight, where it has one: floats and i8, and panels that do not straddle matrices.
pub(crate) fn packing(spec: &Spec) -> Option<Packing> {
    if spec.dtype() == DType::I8 {
        return words::packing(spec);
    }
    let matrices = spec.rows() / spec.dim(1).max(1);
    let fits = spec.dtype().is_float() && (matrices <= 1 || spec.dim(1).is_multiple_of(PANEL));
    fits.then(|| Packing { name: "panel64", bytes: spec.bytes(), rows: PANEL })
}

/// Packs rows of a weight: [`Plan::pack`](crate::backend::Plan::pack).
pub(super) fn pack(isa: Isa, rows: Range<usize>, plain: Tensor, packed: Tensor, pool: &mut Pool) {
    if packed.dtype() == DType::I8 {
        return words::pack(isa, rows, plain, packed, pool);
    }
    let (total, k) = (packed.spec.rows(), packed.spec.dim(0));
    pool.run(rows.len().div_ceil(PANEL), |panel, _| {
        let first = rows.start + panel * PANEL;
        let width = PANEL.min(total - first);
        let (from, to) = (plain.at::<u8>(first - rows.start, 0), packed.pointer::<u8>());
        // SAFETY: the views are as long as stated, and panels are apart.
        unsafe {
            match packed.dtype().block().1 {
                4 => simd!(isa, s => interleave(s, from.cast::<u32>(), to.cast::<u32>().add(first * k), width, k)),
                _ => simd!(isa, s => interleave(s, from.cast::<u16>(), to.cast::<u16>().add(first * k), width, k)),
            }
        }
    });
}

/// `[width][k]` to a panel.
#[inline(always)]
unsafe fn interleave<S: Simd, T: Copy>(_s: S, from: *const T, to: *mut T, width: usize, k: usize) {
    let slice = if width == PANEL { tile::slice::<S>() } else { width };
    for (column, p) in (0..width).step_by(slice).flat_map(|c| (0..k).map(move |p| (c, p))) {
        let place = tile::packed::<S>((k, width), p, column);
        for i in 0..slice {
            // SAFETY: both hold width * k elements, and the slice divides the width.
            unsafe { *to.add(place + i) = *from.add((column + i) * k + p) };
        }
    }
}
