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
//! `sums`, in which x's sums over groups lie where that format needs them. Written for vectors of 64 bytes.
//!
//! A row by a weight is bound by memory, which a loop of loads reads at 11.5 to 13 GB/s here with one thread, and with hardly more with two,
//! where nothing else may lie in the caches (512 MiB and more; the stream of `peaks` lies in the third). Asking for lines 8 KiB ahead into the
//! second cache and 1 KiB ahead into the first is worth half of the speed: q4_k 7.1 to 11.4, q8_0 8.4 to 11.7 GB/s. Other distances (2 to 16
//! KiB), one level alone: 5 to 10 % slower; hints that bypass the caches, huge pages, two to eight rows at once: slower or no faster.
//! As a whole, 4096 x 4096, 40 weights in turn, one thread: q4_k 10.2, q4_0 12.4, q8_0 11.7, q6_k 13.4 GB/s.
//!
//! 8 rows by q4_k of 2048 x 2048: 0.67 to 0.75 ms. The weight is unpacked again for each strip of rows: beyond some twenty (q8_0: five)
//! panels are faster.

use std::{mem::MaybeUninit, slice};

use super::{
    int8::{round, scale},
    tile::BLOCK,
    weight::Weight,
};
use crate::{
    cpu::{
        simd::Simd,
        unpack::{Levels, unpack},
    },
    dtype::DType,
};

/// The most rows of x for which this is the fastest way.
pub(crate) fn most_rows(dtype: DType) -> usize {
    match dtype {
        DType::Q8_0 => 5, // whose panels need no rounding
        DType::Q4_0 | DType::Q4_K | DType::Q6_K => 20,
        _ => 12,
    }
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
    // Runs of 16 elements, in the order of the vectors' lanes; elements that share a scale; what is subtracted from u.
    let (order, group, offset): ([u8; 16], usize, f32) = match dtype {
        DType::Q4_0 => ([0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15], 32, 8.0),
        DType::Q4_K => ([0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15], 32, 1.0),
        DType::Q6_K => ([0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15], 16, 32.0),
        DType::Q8_0 => ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], 32, 128.0),
        _ => ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], 16, 128.0),
    };
    let mut q = [0i8; BLOCK];
    // SAFETY: both blocks hold 256 elements.
    unsafe {
        let (factor, inverse) = scale(s, x, BLOCK);
        round(s, x, inverse, q.as_mut_ptr(), BLOCK);
        (*to).scale = factor;
        (*to).sums = [0.0; 16];
        let runs = q.as_chunks::<16>().0;
        for (i, run) in order.iter().enumerate() {
            (&raw mut (*to).q).cast::<[i8; 16]>().add(i).write(runs[(*run & 15) as usize]);
        }
        for (g, values) in q.chunks_exact(group).enumerate() {
            let mut sum = 0;
            for &v in values {
                sum += v as i32;
            }
            // A Q4_K block's offsets stand behind its scales.
            let at = if dtype == DType::Q4_K { 8 + g } else { g };
            (*to).sums[at & 15] = -offset * sum as f32;
        }
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
    macro_rules! formats {
        ($($Format:ident)*) => {
            match w.tensor.dtype() {
                $(DType::$Format => s.outline(
                    #[inline(always)]
                    // SAFETY: the caller's promise.
                    || unsafe { rows_by::<S, $Format>(s, rows, (x, pitch), w, (from, to), (c, c_pitch)) },
                ),)*
                _ => s.outline(
                    #[inline(always)]
                    // SAFETY: the caller's promise.
                    || unsafe { rows_by::<S, Any>(s, rows, (x, pitch), w, (from, to), (c, c_pitch)) },
                ),
            }
        };
    }
    formats!(Q8_0 Q4_0 Q4_K Q6_K)
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
        let mut b = 0;
        while b < k / BLOCK {
            let mut line = 0;
            while line < bytes {
                s.prefetch_far(row.wrapping_add(b * bytes + FAR + line));
                s.prefetch(row.wrapping_add(b * bytes + NEAR + line));
                line += 64;
            }
            add::<S, F, M>(s, (x.add(b), pitch), (row.add(b * bytes), dtype), &mut sums);
            b += 1;
        }
        let rest = k % BLOCK;
        if rest > 0 {
            let mut last = MaybeUninit::<[u8; 8 * 36]>::zeroed(); // the longest 256 elements of blocks that are shorter
            last.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(row.add(b * bytes), rest / elements * size);
            add::<S, F, M>(s, (x.add(b), pitch), (last.as_ptr().cast(), dtype), &mut sums);
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
        let (u, scales, offsets) = F::unpack(s, dtype, w);
        let mut factors = [scales; 4];
        let mut v = 0;
        while v < 4 {
            factors[v] = s.permute(scales, s.bits(s.load(F::GROUPS[v].as_ptr().cast())));
            v += 1;
        }
        let mut i = 0;
        while i < M {
            let x = x.add(i * pitch);
            let mut sum = s.mul(offsets, s.load((&raw const (*x).sums).cast()));
            let mut v = 0;
            while v < 4 {
                let q = s.bits(s.load((&raw const (*x).q).cast::<f32>().add(v * 16)));
                sum = s.fma(s.float(s.dot(s.splat_i(0), u[v], q)), factors[v], sum);
                v += 1;
            }
            sums[i] = s.fma(sum, s.splat((*x).scale), sums[i]);
            i += 1;
        }
    }
}

/// How 256 elements of a weight become bytes.
trait Format {
    /// Of each vector's lanes, the lane of the scales that belongs to them.
    const GROUPS: [[i32; 16]; 4];

    /// Four vectors of unsigned bytes, up to 16 scales, and what is multiplied with the sums of x.
    ///
    /// # Safety
    /// `p` is readable for 256 elements.
    unsafe fn unpack<S: Simd>(s: S, dtype: DType, p: *const u8) -> ([S::I; 4], S::F, S::F);
}

/// Every format, through the form that all kernels read.
struct Any;
impl Format for Any {
    const GROUPS: [[i32; 16]; 4] = lanes([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]);

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, dtype: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let sign = s.splat_i(0x8080_8080u32 as i32);
        let mut levels = Levels::ZERO;
        // SAFETY: the caller has the blocks, which give 256 levels; vectors are of 64 bytes.
        unsafe {
            unpack(s, dtype, slice::from_raw_parts(p, dtype.bytes(BLOCK).unwrap_or(0)), &mut levels);
            let mut u = [sign; 4];
            let mut v = 0;
            while v < 4 {
                u[v] = s.xor(s.bits(s.load(levels.q.as_ptr().add(64 * v).cast())), sign);
                v += 1;
            }
            let scales = s.load(levels.scale.as_ptr());
            // The sums are -128 times those of x.
            (u, scales, s.fma(s.load(levels.min.as_ptr()), s.splat(1.0 / 128.0), scales))
        }
    }
}

/// Each of the numbers for as many lanes as fill a vector with them.
const fn lanes<const N: usize>(groups: [[i32; N]; 4]) -> [[i32; 16]; 4] {
    let mut all = [[0; 16]; 4];
    let mut i = 0;
    while i < 64 {
        all[i / 16][i % 16] = groups[i / 16][i % 16 * N / 16];
        i += 1;
    }
    all
}

/// The scales that begin eight blocks of so many bytes; zeros behind them.
#[inline(always)]
unsafe fn eight_scales<S: Simd>(s: S, p: *const u8, step: usize) -> S::F {
    let mut bits = [0u16; 16];
    let mut i = 0;
    // SAFETY: the caller has eight blocks.
    unsafe {
        while i < 8 {
            bits[i] = u16::from_le_bytes(p.add(i * step).cast::<[u8; 2]>().read());
            i += 1;
        }
        s.load_f16(bits.as_ptr())
    }
}

pub(super) struct Q8_0;
impl Q8_0 {
    /// Unsigned bytes, and eight scales.
    ///
    /// # Safety
    /// `p` is readable for eight blocks.
    #[inline(always)]
    pub(super) unsafe fn bytes<S: Simd>(s: S, p: *const u8) -> ([S::I; 4], S::F) {
        let sign = s.splat_i(0x8080_8080u32 as i32);
        // SAFETY: eight blocks of a scale and 32 bytes.
        unsafe {
            let mut u = [sign; 4];
            let mut v = 0;
            while v < 4 {
                u[v] = s.xor(s.load_runs::<32>(p.add(v * 68 + 2), 34), sign);
                v += 1;
            }
            (u, eight_scales(s, p, 34))
        }
    }
}
impl Format for Q8_0 {
    const GROUPS: [[i32; 16]; 4] = lanes([[0, 1], [2, 3], [4, 5], [6, 7]]);

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        // SAFETY: the caller's promise.
        let (u, scales) = unsafe { Q8_0::bytes(s, p) };
        (u, scales, scales)
    }
}

struct Q4_0;
impl Format for Q4_0 {
    const GROUPS: [[i32; 16]; 4] = lanes([[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]]);

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let four = s.splat_i(0x0f0f_0f0f);
        // SAFETY: eight blocks of a scale and 16 bytes.
        unsafe {
            let (a, b) = (s.load_runs::<16>(p.add(2), 18), s.load_runs::<16>(p.add(74), 18));
            let high = [s.and(s.shr::<4>(a), four), s.and(s.shr::<4>(b), four)];
            let scales = eight_scales(s, p, 18);
            ([s.and(a, four), high[0], s.and(b, four), high[1]], scales, scales)
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
struct Q4_K;
/// Of each lane of the scales and offsets, the lane of what it is multiplied with: d, dmin.
const FACTORS: [i32; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];
impl Format for Q4_K {
    const GROUPS: [[i32; 16]; 4] = lanes([[0, 2], [1, 3], [4, 6], [5, 7]]);

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let four = s.splat_i(0x0f0f_0f0f);
        // SAFETY: d, dmin, 12 bytes of groups, 128 of nibbles.
        unsafe {
            let word = |at: usize| u32::from_le_bytes(p.add(at).cast::<[u8; 4]>().read());
            let (g0, g1, g2) = (word(4), word(8), word(12));
            let low = |g: u32| (g & 0x3f3f_3f3f) as u128;
            let high = |low: u32, g: u32| (low & 0x0f0f_0f0f | g >> 2 & 0x3030_3030) as u128;
            // One number, so that it goes to a vector without a detour through memory.
            let groups = (low(g0) | high(g2, g0) << 32 | low(g1) << 64 | high(g2 >> 4, g1) << 96).to_le();
            let factors = s.permute(s.load_f16(p.cast()), s.bits(s.load(FACTORS.as_ptr().cast())));
            let scales = s.mul(s.float(s.load_u8((&raw const groups).cast())), factors);
            let (a, b) = (s.bits(s.load(p.add(16).cast())), s.bits(s.load(p.add(80).cast())));
            let high = [s.and(s.shr::<4>(a), four), s.and(s.shr::<4>(b), four)];
            ([s.and(a, four), high[0], s.and(b, four), high[1]], scales, scales)
        }
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
struct Q6_K;
impl Format for Q6_K {
    const GROUPS: [[i32; 16]; 4] = lanes([[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]]);

    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, _: DType, p: *const u8) -> ([S::I; 4], S::F, S::F) {
        let (four, two) = (s.splat_i(0x0f0f_0f0f), s.splat_i(0x3030_3030));
        // SAFETY: 128 bytes of low bits, 64 of high ones, 16 of scales, d.
        unsafe {
            let (a, b) = (s.load_runs::<32>(p, 64), s.load_runs::<32>(p.add(32), 64));
            let high = s.bits(s.load(p.add(128).cast()));
            let u = [
                s.or(s.and(a, four), s.and(s.shl::<4>(high), two)),
                s.or(s.and(b, four), s.and(s.shl::<2>(high), two)),
                s.or(s.and(s.shr::<4>(a), four), s.and(high, two)),
                s.or(s.and(s.shr::<4>(b), four), s.and(s.shr::<2>(high), two)),
            ];
            let d = s.f16_to_f32(u16::from_le_bytes(p.add(208).cast::<[u8; 2]>().read()));
            let scales = s.mul(s.float(s.load_i8(p.add(192).cast())), s.splat(d));
            (u, scales, scales)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cpu::{
            kernel::Tensor,
            simd::{Isa, simd},
        },
        layout::Spec,
        op::Rng,
        quant,
    };

    #[test]
    fn every_format_as_its_decoded_numbers() {
        let Some(isa) = Isa::available().into_iter().find(|isa| isa.dots()) else { return };
        let (m, n, mut rng) = (15, 20, Rng(3));
        for &dtype in DType::ALL.iter().filter(|d| d.is_quantized()) {
            let k = 2 * BLOCK + dtype.block().0;
            let mut normal = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.normal() as f32).collect() };
            let (x, numbers) = (normal(m * 3 * BLOCK), normal(n * k));
            let mut bytes = vec![0; dtype.bytes(n * k).unwrap()];
            quant::encode(dtype, &numbers, &mut bytes).unwrap();
            let mut decoded = vec![0f32; n * k];
            quant::decode(dtype, &bytes, &mut decoded).unwrap();
            let spec = Spec::new(dtype, &[n, k]).unwrap();
            let w = Weight { tensor: Tensor::new(bytes.as_mut_ptr(), &spec), offset: 0, packed: false, scales: None };
            let mut blocks: Vec<Block> = Vec::with_capacity(m * 3);
            let mut c = vec![0f32; m * n];
            let mut power = (0.0, 0.0);
            for (i, x) in x.chunks_exact(3 * BLOCK).enumerate() {
                for b in 0..3 {
                    let mut part = [0f32; BLOCK];
                    let len = BLOCK.min(k - b * BLOCK);
                    part[..len].copy_from_slice(&x[b * BLOCK..][..len]);
                    // SAFETY: there is room for three blocks of each row.
                    simd!(isa, s => unsafe { block(s, dtype, part.as_ptr(), blocks.as_mut_ptr().add(3 * i + b)) });
                }
            }
            // SAFETY: all blocks are there, as are the rows of the weight and of the result.
            simd!(isa, s => unsafe { multiply(s, m, (blocks.as_ptr(), 3), &w, (0, n), (c.as_mut_ptr(), n)) });
            for (i, x) in x.chunks_exact(3 * BLOCK).enumerate() {
                for (j, w) in decoded.chunks_exact(k).enumerate() {
                    let want: f64 = x.iter().zip(w).map(|(&x, &w)| x as f64 * w as f64).sum();
                    power.0 += (want - c[i * n + j] as f64).powi(2);
                    power.1 += want * want;
                }
            }
            assert!(power.0 < 5e-4 * power.1, "{dtype}: {:.2e}", power.0 / power.1);
        }
    }
}
