//! Panels of words for the tile's loop: bytes by signed bytes with sums in i32, four to a word, and bf16 by bf16, two to a word.
//!
//! ```text
//! x, strips of      [k / 64][height][16][4] u8  what is signed, plus 128       [k / 32][height][16][2] bf16
//!    as halves:     [k / 32][height][2: even, odd][8][2] u16
//! w, slices of      [k / 4][slice][4] i8        zeros beyond k                 [k / 2][slice][2] bf16
//! ```
//!
//! A step of bytes is an unsigned by signed dot product of four (`vpdpbusd`, `usdot`): 6 x 64 sums of 4 terms with AVX-512. Where x is signed, sums begin
//! with -128 times the sum of the weight's row, so that the products come out exactly (wrapping, like the sum itself). AVX2 multiplies
//! 16 bits, since pairs of products of bytes would not fit those: x is widened where strips are made (`halves`: twice the words, even bytes and
//! odd ones apart), the weight in the loop. 54 instructions for 6 rows by 16 columns by 4, where peers that let such pairs saturate take 36; both
//! start 24 products, of which a Zen 3 takes two a cycle. 1024 cubed there, one thread, ONNX Runtime's time / ours 0.81 to 0.87, in the same turns x widened
//! in the loop 0.64 to 0.70 (66 instructions); on another day seven bits and the eighth apart 0.49; by intrinsics, which the compiler reorders
//! until twelve sums fill more than the registers, x widened ahead gained nothing. A panel of 16 bits would save 6 more for twice the memory: the loop
//! alone 4 % faster, which widening it takes back. One row from memory there, by 4096 squared: 1.7 ms; all columns of a panel at once, its slices
//! four streams, 1.3 to 1.5 (the loop alone 1.2 to 1.3; four parts of k in turns, eight, four panels at once: no faster; rows as stored 1.7 to 2.5).
//!
//! A step of bf16 is a dot product of pairs (`vdpbf16ps`), twice the work of a step in f32 from half the memory: used where the processor does more of
//! them ([`Isa::detect`]). Not measured on such a processor.
//!
//! Floor at 1024 cubed: 2^31 operations at 720 GOP/s are 3.0 ms; measured 3.2 from panels and 3.4 plain, the best of many
//! runs; 256 cubed 61 us (floor 47). Before, with tiles of 14 x 32, 3.6, 3.9 and 89; through f32 16 ms.
//!
//! The packed form `quads64` of an i8 weight is its panels (the last one narrower), then the rows' -128 times their sums:
//!
//! ```text
//! [panel of rows 0..64][panel of rows 64..128] .. [the last rows, fewer] [i32 for each row]
//! panel: a block for each 1024 bytes of k, of 64 / slice slices; of the last rows: [k / 4][rows][4]
//! ```
//!
//! and that of bf16, `pairs64`, its panels alone.

use std::{mem::MaybeUninit, ops::Range, ptr};

use super::{
    tile::{self, PANEL, Quad},
    weight::Weight,
};
use crate::{
    backend::Packing,
    cpu::{
        decode::decode_strided,
        kernel::Tensor,
        pool::Pool,
        simd::{Isa, Simd, simd},
    },
    dtype::DType,
    layout::Spec,
};

/// Bytes of a row between two visits of the sums.
pub(super) const BLOCK: usize = 4 * tile::BLOCK;
/// Rows of fewer bytes would take a twentieth more packed than plain.
const SHORTEST: usize = 144;

/// A panel that was made, and what its sums begin with.
#[repr(C, align(64))]
pub(super) struct Panel {
    quads: [[Quad; PANEL]; tile::BLOCK],
    start: [i32; PANEL],
}

/// A block of a row of x as unsigned bytes.
///
/// # Safety
/// `from` is readable for `len` elements, at most BLOCK of them, `to` writable for BLOCK.
#[inline(always)]
pub(super) unsafe fn row<S: Simd>(_s: S, dtype: DType, from: *const u8, stride: usize, len: usize, to: *mut u8) {
    let flip = if dtype == DType::I8 { 0x80 } else { 0 };
    // SAFETY: the caller's promise.
    unsafe {
        if stride == 1 {
            (0..len).for_each(|p| *to.add(p) = *from.add(p) ^ flip);
        } else {
            (0..len).for_each(|p| *to.add(p) = *from.add(p * stride) ^ flip);
        }
        to.add(len).write_bytes(0, BLOCK - len);
    }
}

/// A block of a row of x as bf16.
///
/// # Safety
/// `from` is readable for `len` elements, at most `BLOCK / 2` of them, `to` writable for `BLOCK / 2`.
#[inline(always)]
pub(super) unsafe fn pairs<S: Simd>(s: S, dtype: DType, from: *const u8, stride: usize, len: usize, to: *mut u16) {
    const ROOM: usize = BLOCK / 2;
    let mut values = [0f32; ROOM];
    // SAFETY: the caller's promise; LANES divides ROOM.
    unsafe {
        decode_strided(s, dtype, from, stride, values.as_mut_ptr(), len);
        for p in (0..ROOM).step_by(S::LANES) {
            s.store_bf16(to.add(p), s.load(values.as_ptr().add(p)));
        }
    }
}

/// Rows `j .. j + 64` (zeros beyond the last), elements `k` of each, of so many bytes, as they lie in memory or made in `own`; and what sums begin
/// with where x is `signed` (for zeros: null).
///
/// # Safety
/// The range exists, begins at a multiple of BLOCK and is at most that long; `own` is writable.
#[inline(always)]
pub(super) unsafe fn panel<S: Simd, const BYTES: usize>(
    s: S,
    w: &Weight,
    j: usize,
    k: Range<usize>,
    signed: bool,
    own: *mut Panel,
) -> (*const Quad, *const f32) {
    let (n, pitch, steps) = (w.n(), length::<BYTES>(w.k()), (k.len() * BYTES).div_ceil(4));
    let (width, slice) = ((n - j).min(PANEL), const { tile::slice::<S>() });
    // SAFETY: the rows and columns exist; what is made is no longer than a block.
    unsafe {
        let (quads, start) = ((&raw mut (*own).quads).cast::<Quad>(), (&raw mut (*own).start).cast::<f32>());
        if w.packed.is_some() && width == PANEL {
            let row = w.offset / pitch.max(1) + j;
            let sums = w.tensor.pointer::<u8>().add(w.tensor.spec.rows() * pitch).cast::<f32>().add(row);
            let start = if signed && k.start == 0 { sums.cast_const() } else { ptr::null() };
            return (w.element(j * pitch + k.start * PANEL), start);
        }
        if w.packed.is_some() {
            let from = w.element::<Quad>(j * pitch + k.start * width);
            quads.write_bytes(0, steps * tile::touched::<S>(width));
            for column in (0..width).step_by(slice) {
                let (to, some) = (quads.add(tile::column::<S>(steps, column)), slice.min(width - column));
                for q in 0..steps {
                    to.add(q * slice).copy_from_nonoverlapping(from.add(q * width + column), some);
                }
            }
        } else {
            make::<S, BYTES>(s, w, j, k, quads);
        }
        if !signed {
            return (quads, ptr::null());
        }
        let (each, mut column) = (s.splat_i(0x8080_8080u32 as i32), 0);
        while column < tile::touched::<S>(width) {
            let mut sum = s.splat_i(0);
            for q in 0..steps {
                let from = quads.add(tile::column::<S>(steps, column) + q * slice);
                sum = s.dot(sum, each, s.bits(s.load(from.cast())));
            }
            s.store(start.add(column), s.of_bits(s.sub_i(s.splat_i(0), sum)));
            column += S::LANES;
        }
        (quads, start)
    }
}

/// A panel of a weight that is not packed.
#[inline(always)]
unsafe fn make<S: Simd, const BYTES: usize>(s: S, w: &Weight, j: usize, k: Range<usize>, quads: *mut Quad) {
    let (spec, width, steps) = (w.tensor.spec, (w.n() - j).min(PANEL), (k.len() * BYTES).div_ceil(4));
    let slice = const { tile::slice::<S>() };
    // SAFETY: rows j .. j + width exist, and indices stay inside the block.
    unsafe {
        if spec.stride(0) != 1 {
            let (to, each) = (quads.cast::<[u8; BYTES]>(), 4 / BYTES);
            to.write_bytes(0, steps * PANEL * each);
            for (p, i) in (0..k.len()).flat_map(|p| (0..width).map(move |i| (p, i))) {
                let from = w.element::<[u8; BYTES]>((j + i) * spec.stride(1) + (k.start + p) * spec.stride(0));
                *to.add((tile::column::<S>(steps, i) + p / each * slice) * each + p % each) = *from;
            }
            return;
        }
        let mut rows = MaybeUninit::<[[f32; tile::BLOCK]; 16]>::uninit();
        let rows = rows.as_mut_ptr().cast::<f32>();
        let long = steps.next_multiple_of(S::LANES) * 4;
        for column in (0..PANEL).step_by(S::LANES) {
            for i in 0..S::LANES {
                let (row, to) = (j + column + i, rows.add(i * tile::BLOCK).cast::<u8>());
                let len = if column + i < width { k.len() * BYTES } else { 0 };
                if len > 0 {
                    to.copy_from_nonoverlapping(w.element(row * spec.stride(1) + k.start), len);
                }
                to.add(len).write_bytes(0, long - len);
            }
            for p in (0..steps).step_by(S::LANES) {
                // The last steps may reach beyond a slice: into the next, which is made afterwards, or to the end of the panel's room.
                let to = quads.cast::<f32>().add(tile::column::<S>(steps, column) + p * slice);
                s.transpose(rows.add(p), tile::BLOCK, to, slice);
            }
        }
    }
}

/// Elements of so many bytes from a packed row to the next.
pub(super) fn length<const BYTES: usize>(k: usize) -> usize {
    k.next_multiple_of(4 / BYTES)
}

/// The packed form of a weight of i8 or bf16, where it has one.
pub(super) fn packing(spec: &Spec) -> Option<Packing> {
    let (rows, k) = (spec.rows(), spec.dim(0));
    let whole = rows <= spec.dim(1) || spec.dim(1).is_multiple_of(PANEL);
    let (name, each, sums) = match spec.dtype() {
        DType::I8 => ("quads64", 1, 4),
        DType::BF16 => ("pairs64", 2, 0),
        _ => return None,
    };
    let row = k.checked_mul(each)?.checked_next_multiple_of(4)?.checked_add(sums)?;
    let bytes = rows.checked_mul(row)?;
    (k * each >= SHORTEST && whole).then_some(Packing { name, bytes, rows: PANEL })
}

/// Packs rows of a weight: [`Plan::pack`](crate::backend::Plan::pack).
pub(super) fn pack(isa: Isa, rows: Range<usize>, plain: Tensor, packed: Tensor, pool: &mut Pool) {
    if packed.dtype() == DType::I8 {
        pack_words::<1>(isa, rows, plain, packed, pool);
    } else {
        pack_words::<2>(isa, rows, plain, packed, pool);
    }
}

/// The first columns of a panel to `[steps][width]`.
#[inline(always)]
unsafe fn unslice<S: Simd>(_s: S, quads: *const Quad, steps: usize, width: usize, to: *mut Quad) {
    for (q, i) in (0..steps).flat_map(|q| (0..width).map(move |i| (q, i))) {
        // SAFETY: the caller has a panel, and room for its columns.
        unsafe { *to.add(q * width + i) = *quads.add(tile::column::<S>(steps, i) + q * tile::slice::<S>()) };
    }
}

/// Elements of so many bytes.
fn pack_words<const BYTES: usize>(isa: Isa, rows: Range<usize>, plain: Tensor, packed: Tensor, pool: &mut Pool) {
    let (total, k) = (packed.spec.rows(), packed.spec.dim(0));
    let pitch = length::<BYTES>(k) * BYTES;
    let w = Weight { tensor: plain, offset: 0, packed: None, scales: None };
    pool.run(rows.len().div_ceil(PANEL), |index, _| {
        let (j, mut own) = (index * PANEL, MaybeUninit::<Panel>::uninit());
        let (first, width) = (rows.start + j, PANEL.min(rows.len() - j));
        // SAFETY: the views are as long as stated, and panels are apart.
        simd!(isa, s => unsafe {
            let to = packed.pointer::<u8>().add(first * pitch).cast::<Quad>();
            let sums = packed.pointer::<u8>().wrapping_add(total * pitch + first * 4).cast::<i32>(); // of bytes alone
            if BYTES == 1 {
                sums.write_bytes(0, width);
            }
            for p in (0..k).step_by(BLOCK / BYTES) {
                let block = p..k.min(p + BLOCK / BYTES);
                let (quads, start) = panel::<_, BYTES>(s, &w, j, block.clone(), BYTES == 1, own.as_mut_ptr());
                let (steps, to) = ((block.len() * BYTES).div_ceil(4), to.add(p * BYTES / 4 * width));
                if width == PANEL {
                    to.copy_from_nonoverlapping(quads, steps * PANEL);
                } else {
                    unslice(s, quads, steps, width, to);
                }
                for i in (0..width).take_while(|_| BYTES == 1) {
                    *sums.add(i) = (*sums.add(i)).wrapping_add(*start.cast::<i32>().add(i));
                }
            }
        });
    });
}
