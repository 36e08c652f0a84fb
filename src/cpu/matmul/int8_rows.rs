//! Few rows of x times a quantized weight under `Numerics::Fast`: each row of the weight is streamed once, as stored, and 256 elements
//! of it at a time are unpacked to unsigned bytes in four vectors, which dot products by fours multiply with x in 8 bits.
//!
//! A [`Format`] says how it fills the vectors. Each run of 16 elements is then spread over all four, a lane of each ([`Simd::turn_fours`]), so that the
//! vectors' products are added up before they meet their scales. x is rounded once, a scale for each 256 elements, its elements in the same order:
//!
//! ```text
//! Block of x: | q: i8 [4 quads][4 i + v: run i of vector v][4] | sums: f32 [16] | scale: f32 |
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
//! Spread runs need one conversion and one product with the scales for a row of x where four vectors needed four: 8 vector instructions a block with
//! AVX-512 in place of 14, for 8 shuffles once. Eight rows of x are more than the first cache holds: two rows of the weight share what is read of
//! them. Emerald Rapids, one thread, 4096 x 4096, the least of runs by turns, ms: 8 rows by q4_k 1.79, spread 1.50, by two 1.37; q6_k 1.97, 1.77,
//! 1.53; 4 rows by q4_k 0.99, 0.86, 0.82 (reading takes 0.67). AVX2 on the same processor: 1 row by q4_k 1.6 and 0.9, 4 rows by q5_0 3.0 and 2.1,
//! 8 rows by q6_k 4.7 and 4.0. Beyond eight rows panels are as fast.
//!
//! Formats through the form of `cpu/unpack.rs`, as they went before, and with unpacking of their own, same processor, 1 row, ms: iq1_s 3.7 and 1.2,
//! iq1_m 8.3 and 1.1, iq2_xxs 3.9 and 1.1, iq2_xs 5.5 and 1.2, iq2_s 6.8 and 1.1, iq3_xxs 3.8 and 1.25, iq3_s 5.0 and 1.5, tq1_0 1.8 and 0.85,
//! nvfp4 20 and 0.80. Points are gathered by one instruction for eight (AVX-512: more than half of what is left); signs go by way of 64 bits that
//! become bytes.
//!
//! Zen 3: scales are moved to the lanes of a vector by one instruction where all come from one register (`permute`): 1 x 4096 by 4096 squared in
//! q4_k, by turns, 1.01 to 0.83 ms (reading takes 0.5). Tried: four rows as streams that the processor follows itself, as in [`rows`](super::rows): 1.1
//! to 1.9 ms.

use std::mem::MaybeUninit;

use super::{
    format::{Format, format},
    int8::{LONGEST, round, scale},
    tile::BLOCK,
    weight::Weight,
};
use crate::{cpu::simd::Simd, dtype::DType};

/// The most rows of x for which this may be the fastest way.
pub(crate) const MOST_ROWS: usize = 8;

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
        let q = (&raw mut (*to).q).cast::<f32>();
        let (scale, sums) = ordered::<S, F>(s, x, q.cast());
        let s = s.wide();
        let turned = s.turn_fours(four(s, q));
        let mut v = 0;
        while v < 4 {
            s.store(q.add(v * 16), s.of_bits(turned[v]));
            v += 1;
        }
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
    let (stride, dtype) = (w.tensor.spec.stride(1), w.tensor.dtype());
    for j in (from..to).step_by(2) {
        let both = [w.element::<u8>(j * stride), w.element::<u8>((j + 1).min(to - 1) * stride)];
        let (c, count) = (c.wrapping_add(j - from), 2.min(to - j));
        let mut i = 0;
        // SAFETY: the caller's promise; i .. i + M are rows of x.
        unsafe {
            macro_rules! strips {
                ($J:literal: $($M:literal)*) => {$(
                    while rows - i >= $M {
                        let (x, c) = (x.add(i * pitch), c.add(i * c_pitch));
                        for v in (0..count).step_by($J) {
                            let mut some = [both[v]; $J];
                            some[$J - 1] = both[v + $J - 1];
                            dot::<S, F, $M, $J>(s, (x, pitch), (some, dtype), w.k(), (c.add(v), c_pitch), count - v);
                        }
                        i += $M;
                    }
                )*};
            }
            if const { S::REGISTERS == 32 && S::PARTS == 1 } {
                strips!(2: 8 4);
            } else {
                strips!(1: 8 4);
            }
            strips!(1: 2 1);
        }
    }
}

/// Of J rows of the weight the first `count`: where it is 1, the rest may be the same again.
#[inline(always)]
unsafe fn dot<S: Simd, F: Format, const M: usize, const J: usize>(
    s: S,
    (x, pitch): (*const Block, usize),
    (rows, dtype): ([*const u8; J], DType),
    k: usize,
    (c, c_pitch): (*mut f32, usize),
    count: usize,
) {
    let mut sums = [[s.zero(); M]; J];
    let (elements, size) = dtype.block();
    let bytes = BLOCK / elements * size;
    // SAFETY: the rows have k elements, x the blocks for them; lines asked for ahead may lie anywhere.
    unsafe {
        let mut last = MaybeUninit::<[[u8; LONGEST]; J]>::uninit();
        let last = last.as_mut_ptr().cast::<u8>();
        let mut b = 0;
        while b * BLOCK < k {
            let mut w = rows;
            let rest = k - b * BLOCK;
            let mut j = 0;
            while j < J {
                let mut line = 0;
                while line < bytes {
                    s.prefetch_far(rows[j].wrapping_add(b * bytes + FAR + line));
                    s.prefetch(rows[j].wrapping_add(b * bytes + NEAR + line));
                    line += 64;
                }
                w[j] = rows[j].add(b * bytes);
                if rest < BLOCK {
                    let to = last.add(j * LONGEST);
                    to.write_bytes(0, LONGEST);
                    to.copy_from_nonoverlapping(w[j], rest / elements * size);
                    w[j] = to;
                }
                j += 1;
            }
            add::<S, F, M, J>(s, (x.add(b), pitch), w, &mut sums);
            b += 1;
        }
        for (j, sums) in sums.iter().enumerate().take(count) {
            for (i, &sum) in sums.iter().enumerate() {
                *c.add(i * c_pitch + j) = s.sum(sum);
            }
        }
    }
}

/// Adds the products of a block.
#[inline(always)]
unsafe fn add<S: Simd, F: Format, const M: usize, const J: usize>(
    s: S,
    (x, pitch): (*const Block, usize),
    w: [*const u8; J],
    sums: &mut [[S::F; M]; J],
) {
    let signed = F::OFFSET == 128 && S::SIGNED;
    let (mut all, mut factors, mut offsets) = ([[s.splat_i(0); 4]; J], [s.zero(); J], [s.zero(); J]);
    // SAFETY: the caller has a block of each.
    unsafe {
        let mut j = 0;
        while j < J {
            let (mut u, scales, mut offset) = F::unpack(s, w[j]);
            if signed {
                let mut v = 0;
                while v < 4 {
                    u[v] = s.shift_bytes(u[v]);
                    v += 1;
                }
                offset = s.sub(offset, scales);
            }
            // A lane's numbers are of one group, and so are the sums of all four.
            (all[j], factors[j], offsets[j]) = (s.turn_fours(u), s.permute(scales, &F::TURNED), offset);
            j += 1;
        }
        let mut i = 0;
        while i < M {
            let x = x.add(i * pitch);
            let (q, x_sums) = (four(s, (&raw const (*x).q).cast()), s.load((&raw const (*x).sums).cast()));
            let mut j = 0;
            while j < J {
                let u = all[j];
                let products = if F::OFFSET < 128 {
                    s.dot_fours(u, q, F::STEPS)
                } else {
                    let (mut sum, mut v) = (s.splat_i(0), 0);
                    while v < 4 {
                        sum = if signed { s.dot_signed(sum, u[v], q[v]) } else { s.dot(sum, u[v], q[v]) };
                        v += 1;
                    }
                    sum
                };
                let sum = s.fma(s.float(products), factors[j], s.mul(offsets[j], x_sums));
                sums[j][i] = s.fma(sum, s.splat((*x).scale), sums[j][i]);
                j += 1;
            }
            i += 1;
        }
    }
}

/// Four vectors.
#[inline(always)]
unsafe fn four<S: Simd>(s: S, p: *const f32) -> [S::I; 4] {
    let (mut all, mut v) = ([s.splat_i(0); 4], 0);
    while v < 4 {
        // SAFETY: the caller has them.
        all[v] = s.bits(unsafe { s.load(p.add(v * S::LANES)) });
        v += 1;
    }
    all
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
        let (m, n, mut rng) = (15, 21, Rng(3));
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
