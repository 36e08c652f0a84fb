//! Few rows of x times a quantized weight under `Numerics::Fast`: each row of the weight is streamed once, as stored, and 256 elements
//! of it at a time are unpacked to unsigned bytes in four vectors, which dot products by fours multiply with x in 8 bits.
//!
//! A [`Format`] says how it fills the vectors and which group scale goes with each lane. x is rounded once, a
//! scale for each 256 elements, its elements in the order in which the format's unpacking yields them:
//!
//! ```text
//! Block of x: | q: i8 [4 vectors][64] | sums: f32 [16] | scale: f32 |
//! ```
//!
//! Weights are `s_g (u - o)` or `s_g u - m_g`: the part without u is a product of 16 lanes, the format's scales (and offsets) times
//! `sums`, in which x's sums over groups lie where that format needs them. Written for vectors of 64 bytes ([`Simd::wide`]).
//!
//! A row by a weight is bound by memory, which a loop of loads reads at 11.5 to 13 GB/s here with one thread, and with hardly more with two,
//! where nothing else may lie in the caches (512 MiB and more; the stream of `peaks` lies in the third). Asking for lines 8 KiB ahead into the
//! second cache and 1 KiB ahead into the first is worth half of the speed: q4_k 7.1 to 11.4, q8_0 8.4 to 11.7 GB/s. Other distances (2 to 16
//! KiB), one level alone: 5 to 10 % slower; hints that bypass the caches, huge pages, two to eight rows at once: slower or no faster.
//! As a whole, 4096 x 4096, 40 weights in turn, one thread: q4_k 10.2, q4_0 12.4, q8_0 11.7, q6_k 13.4 GB/s.
//!
//! With shorter vectors a block is several registers, one thread, 4096 x 4096 in the caches, ms for 1 and 4 rows; in brackets AVX2 through f32: AVX2 q4_k
//! 1.13, 2.5 (3.9, 6.4), q8_0 0.90, 2.6 (3.8, 5.7), q6_k 1.14, 2.5; AVX-VNNI q4_k 1.07, 2.3, q8_0 0.80, 1.9, q6_k 1.03, 2.3.
//!
//! Zen 3: scales are moved to the lanes of each vector by one instruction where all come from one register (`permute`): 1 x 4096 by 4096 squared in
//! q4_k, by turns, 1.01 to 0.83 ms (reading takes 0.5). Tried: four rows as streams that the processor follows itself, as in [`rows`](super::rows): 1.1
//! to 1.9 ms.
//!
//! 1 row by 1024 x 2048, 100 weights in turn, one thread, us; in brackets through the form of `cpu/unpack.rs`, as most formats went before: q4_k 142,
//! q5_0 228, q5_1 254 (461), q4_1 167 (343), q2_k 91 (244), q3_k 147 (542), iq4_nl 153 (277), iq4_xs 163 (363), mxfp4 153 (277), tq2_0 93 (222), i8
//! 209 (through f32 458), q8_0 238. In the caches q4_k takes 63, q5_0 138: its fifth bits come by way of a table in memory. Still through that form, in
//! the caches: iq2_xxs 465, nvfp4 927.
//!
//! 8 rows by q4_k of 2048 x 2048: 0.67 to 0.75 ms. The weight is unpacked again for each strip of rows: beyond eight (q8_0: five)
//! panels are faster.

use std::mem::MaybeUninit;

use super::{
    format::{Format, format},
    int8::{LONGEST, round, scale},
    tile::BLOCK,
    weight::Weight,
};
use crate::{
    cpu::simd::{Isa, Simd, dots},
    dtype::DType,
};

/// The most rows of x for which this is the fastest way: fewer where panels need no rounding and 32 registers hold the sums of many rows.
pub(crate) fn most_rows(isa: Isa, dtype: DType) -> usize {
    #[inline(always)]
    fn registers<S: Simd>(_: S) -> usize {
        S::REGISTERS
    }
    if dtype == DType::Q8_0 && dots!(isa, s => registers(s)) == 32 { 5 } else { 8 }
}

/// Bytes of the weight between what is multiplied and what is asked for: into the second cache, into the first.
const FAR: usize = 8192;
const NEAR: usize = 1024;

/// 256 elements of a row of x.
#[repr(C, align(64))]
pub(super) struct Block {
    q: [i8; BLOCK],
    sums: [f32; 16],
    scale: f32,
}

/// Rounds 256 elements of x, to be multiplied with a weight of this dtype.
///
/// # Safety
/// `x` holds BLOCK elements, zeros beyond the last; `to` is writable.
#[inline(always)]
pub(super) unsafe fn block<S: Simd>(s: S, dtype: DType, x: *const f32, to: *mut Block) {
    if !S::DOTS {
        return; // never planned, and so never compiled
    }
    // SAFETY: the caller's promise.
    format!(dtype, F => unsafe { block_of::<S, F>(s, x, to) })
}

#[inline(always)]
unsafe fn block_of<S: Simd, F: Format>(s: S, x: *const f32, to: *mut Block) {
    // SAFETY: both blocks hold 256 elements.
    unsafe {
        let (scale, sums) = ordered::<S, F>(s, x, (&raw mut (*to).q).cast());
        (*to).scale = scale;
        (*to).sums = [0.0; 16];
        for (g, sum) in sums.iter().enumerate().take(BLOCK / F::GROUP) {
            (*to).sums[(F::FIRST + g) & 15] = -(F::OFFSET.max(1) * sum) as f32;
        }
    }
}

/// Rounds 256 elements of x, puts runs of 16 in the format's order, and gives their scale and the sums of groups.
///
/// # Safety
/// `x` holds BLOCK elements; there is room for as many.
#[inline(always)]
pub(super) unsafe fn ordered<S: Simd, F: Format>(s: S, x: *const f32, to: *mut [i8; 16]) -> (f32, [i32; 16]) {
    let (mut q, mut sums) = ([0i8; BLOCK], [0; 16]);
    // SAFETY: each of 16 runs has a place.
    unsafe {
        let (factor, inverse) = scale(s, x, BLOCK);
        round(s, x, inverse, q.as_mut_ptr(), BLOCK);
        for (i, run) in F::ORDER.iter().enumerate() {
            to.add(i).write(q.as_chunks::<16>().0[*run & 15]);
        }
        for (sum, values) in sums.iter_mut().zip(q.chunks_exact(F::GROUP)) {
            for &v in values {
                *sum += v as i32;
            }
        }
        (factor, sums)
    }
}

/// `c[i][j - from] = x[i] . w[j]` for the rows `from .. to` of the weight; `x` is `[rows][pitch]` blocks.
///
/// # Safety
/// The rows exist, `x` has a whole number of blocks for each, `c` has rows of `c_pitch`.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(
    s: S,
    rows: usize,
    (x, pitch): (*const Block, usize),
    w: &Weight,
    (from, to): (usize, usize),
    (c, c_pitch): (*mut f32, usize),
) {
    if !S::DOTS {
        return; // never planned, and so never compiled
    }
    let s = s.wide();
    format!(w.tensor.dtype(), F => s.outline(
        #[inline(always)]
        // SAFETY: the caller's promise.
        || unsafe { rows_by::<S::Wide, F>(s, rows, (x, pitch), w, (from, to), (c, c_pitch)) },
    ))
}

#[inline(always)]
unsafe fn rows_by<S: Simd, F: Format>(
    s: S,
    rows: usize,
    (x, pitch): (*const Block, usize),
    w: &Weight,
    (from, to): (usize, usize),
    (c, c_pitch): (*mut f32, usize),
) {
    let stride = w.tensor.spec.stride(1);
    for j in from..to {
        let row = w.element::<u8>(j * stride);
        let mut i = 0;
        // SAFETY: the caller's promise; i .. i + M are rows of x.
        unsafe {
            macro_rules! strips {
                ($($M:literal)*) => {$(
                    while rows - i >= $M {
                        let c = (c.add(i * c_pitch + j - from), c_pitch);
                        dot::<S, F, $M>(s, (x.add(i * pitch), pitch), (row, w.tensor.dtype()), w.k(), c);
                        i += $M;
                    }
                )*};
            }
            strips!(8 4 2 1);
        }
    }
}

#[inline(always)]
unsafe fn dot<S: Simd, F: Format, const M: usize>(
    s: S,
    (x, pitch): (*const Block, usize),
    (row, dtype): (*const u8, DType),
    k: usize,
    (c, c_pitch): (*mut f32, usize),
) {
    let mut sums = [s.zero(); M];
    let (elements, size) = dtype.block();
    let bytes = BLOCK / elements * size;
    // SAFETY: the row has k elements, x the blocks for them; lines asked for ahead may lie anywhere.
    unsafe {
        let mut last = MaybeUninit::<[u8; LONGEST]>::uninit();
        let last = last.as_mut_ptr().cast::<u8>();
        let mut b = 0;
        while b * BLOCK < k {
            let mut line = 0;
            while line < bytes {
                s.prefetch_far(row.wrapping_add(b * bytes + FAR + line));
                s.prefetch(row.wrapping_add(b * bytes + NEAR + line));
                line += 64;
            }
            let mut w = row.add(b * bytes);
            let rest = k - b * BLOCK;
            if rest < BLOCK {
                last.write_bytes(0, LONGEST);
                last.copy_from_nonoverlapping(w, rest / elements * size);
                w = last;
            }
            add::<S, F, M>(s, (x.add(b), pitch), (w, dtype), &mut sums);
            b += 1;
        }
        let mut i = 0;
        while i < M {
            *c.add(i * c_pitch) = s.sum(sums[i]);
            i += 1;
        }
    }
}

/// Adds the products of a block.
#[inline(always)]
unsafe fn add<S: Simd, F: Format, const M: usize>(
    s: S,
    (x, pitch): (*const Block, usize),
    (w, dtype): (*const u8, DType),
    sums: &mut [S::F; M],
) {
    // SAFETY: the caller has a block of each.
    unsafe {
        let (mut u, scales, mut offsets) = F::unpack(s, dtype, w);
        let signed = F::OFFSET == 128 && S::SIGNED;
        if signed {
            let mut v = 0;
            while v < 4 {
                u[v] = s.shift_bytes(u[v]);
                v += 1;
            }
            offsets = s.sub(offsets, scales);
        }
        let mut factors = [scales; 4];
        let mut v = 0;
        while v < 4 {
            factors[v] = s.permute(scales, &F::GROUPS[v]);
            v += 1;
        }
        let mut i = 0;
        while i < M {
            let x = x.add(i * pitch);
            let mut sum = s.mul(offsets, s.load((&raw const (*x).sums).cast()));
            let mut v = 0;
            while v < 4 {
                let q = s.bits(s.load((&raw const (*x).q).cast::<f32>().add(v * 16)));
                let none = s.splat_i(0);
                let products = if signed {
                    s.dot_signed(none, u[v], q)
                } else if F::OFFSET < 128 {
                    s.dot_small(none, u[v], q)
                } else {
                    s.dot(none, u[v], q)
                };
                sum = s.fma(s.float(products), factors[v], sum);
                v += 1;
            }
            sums[i] = s.fma(sum, s.splat((*x).scale), sums[i]);
            i += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cpu::{
            kernel::Tensor,
            matmul::format::drawn::{normal, weight},
            simd::{Isa, dots},
        },
        layout::Spec,
        op::Rng,
    };

    #[test]
    fn every_format_as_its_decoded_numbers() {
        let (m, n, mut rng) = (15, 20, Rng(3));
        let types = DType::ALL.iter().filter(|d| d.is_quantized() || **d == DType::I8);
        for (isa, &dtype) in
            Isa::available().into_iter().filter(|isa| isa.dots()).flat_map(|isa| types.clone().map(move |t| (isa, t)))
        {
            let k = 2 * BLOCK + dtype.block().0;
            let x = normal(m * 3 * BLOCK, &mut rng);
            let (mut bytes, decoded) = weight(dtype, n * k, false, &mut rng);
            let spec = Spec::new(dtype, &[n, k]).unwrap();
            let w = Weight { tensor: Tensor::new(bytes.as_mut_ptr(), &spec), offset: 0, packed: None, scales: None };
            let mut blocks: Vec<Block> = Vec::with_capacity(m * 3);
            let mut c = vec![0f32; m * n];
            let mut power = (0.0, 0.0);
            for (i, x) in x.chunks_exact(3 * BLOCK).enumerate() {
                for b in 0..3 {
                    let mut part = [0f32; BLOCK];
                    let len = BLOCK.min(k - b * BLOCK);
                    part[..len].copy_from_slice(&x[b * BLOCK..][..len]);
                    // SAFETY: there is room for three blocks of each row.
                    dots!(isa, s => unsafe { block(s, dtype, part.as_ptr(), blocks.as_mut_ptr().add(3 * i + b)) });
                }
            }
            // SAFETY: all blocks are there, as are the rows of the weight and of the result.
            dots!(isa, s => unsafe { multiply(s, m, (blocks.as_ptr(), 3), &w, (0, n), (c.as_mut_ptr(), n)) });
            for (i, x) in x.chunks_exact(3 * BLOCK).enumerate() {
                for (j, w) in decoded.chunks_exact(k).enumerate() {
                    let want: f64 = x.iter().zip(w).map(|(&x, &w)| x as f64 * w as f64).sum();
                    power.0 += (want - c[i * n + j] as f64).powi(2);
                    power.1 += want * want;
                }
            }
            assert!(power.0 < 5e-4 * power.1, "{} {dtype}: {:.2e}", isa.name(), power.0 / power.1);
        }
    }
}
