//! Blocks of every quantized format as small whole numbers, the one form that the kernels read: `x[i] = scale[i / 16] * q[i] -
//! min[i / 16]`, rounded in this order, is exactly what `quant::decode` gives (layouts: the files in quant/).
//!
//! Plain loops over arrays, which the compiler turns into vectors; only looking up levels of 4 bits takes an instruction of its own.
//! Points of the IQ grids are tables of eight (or four) bytes, signs a mask of as many.
//!
//! Tried before: decoding to f32 in portable code, 0.25 to 3.8 ns for an element, one thread with AVX-512.

use super::simd::Simd;
use crate::{
    dtype::DType,
    quant::{grid_bytes, half_scale, iq4_nl_levels, mx_levels, mx_power},
};

/// Up to 256 elements: see above. Beyond the last, all is 0.
#[repr(C, align(64))]
pub(crate) struct Levels {
    pub(crate) q: [i8; 256],
    pub(crate) scale: [f32; 16],
    pub(crate) min: [f32; 16],
}

impl Levels {
    pub(crate) const ZERO: Levels = Levels { q: [0; 256], scale: [0.0; 16], min: [0.0; 16] };
}

/// Whole blocks of at most 256 elements. A dtype that is not quantized gives zeros.
#[inline(always)]
pub(crate) fn unpack<S: Simd>(s: S, dtype: DType, bytes: &[u8], to: &mut Levels) {
    let s = s.plain();
    s.outline(
        #[inline(always)]
        || unpack_here(s, dtype, bytes, to),
    )
}

#[inline(always)]
fn unpack_here<S: Simd>(s: S, dtype: DType, bytes: &[u8], to: &mut Levels) {
    if bytes.len() / dtype.block().1 * dtype.block().0 < 256 {
        *to = Levels::ZERO;
    } else {
        to.min = [0.0; 16];
    }
    macro_rules! formats {
        ($($Format:ident $f:ident $bytes:literal $elements:literal;)*) => {
            match dtype {
                $(DType::$Format => {
                    let q = to.q.as_chunks_mut::<$elements>().0.iter_mut();
                    let scale = to.scale.as_chunks_mut::<{ $elements / 16 }>().0.iter_mut();
                    let min = to.min.as_chunks_mut::<{ $elements / 16 }>().0.iter_mut();
                    for (((b, q), scale), min) in bytes.as_chunks::<$bytes>().0.iter().zip(q).zip(scale).zip(min) {
                        $f(s, b, q, scale, min);
                    }
                })*
                _ => *to = Levels::ZERO,
            }
        };
    }
    formats! {
        Q4_0 q4_0 18 32;
        Q4_1 q4_1 20 32;
        Q5_0 q5_0 22 32;
        Q5_1 q5_1 24 32;
        Q8_0 q8_0 34 32;
        Q8_1 q8_1 36 32;
        Q2_K q2_k 84 256;
        Q3_K q3_k 110 256;
        Q4_K q4_k 144 256;
        Q5_K q5_k 176 256;
        Q6_K q6_k 210 256;
        Q8_K q8_k 292 256;
        IQ1_S iq1_s 50 256;
        IQ1_M iq1_m 56 256;
        IQ2_XXS iq2_xxs 66 256;
        IQ2_XS iq2_xs 74 256;
        IQ2_S iq2_s 82 256;
        IQ3_XXS iq3_xxs 98 256;
        IQ3_S iq3_s 110 256;
        IQ4_NL iq4_nl 18 32;
        IQ4_XS iq4_xs 136 256;
        TQ1_0 tq1_0 54 256;
        TQ2_0 tq2_0 66 256;
        MXFP4 mxfp4 17 32;
        NVFP4 nvfp4 36 64;
        Q1_0 q1_0 18 128;
    }
    match dtype {
        DType::IQ4_NL | DType::IQ4_XS => look_up(s, &iq4_nl_levels(), to),
        DType::MXFP4 | DType::NVFP4 => look_up(s, &mx_levels(), to),
        _ => {}
    }
}

/// Numbers below 16 to levels.
#[inline(always)]
fn look_up<S: Simd>(s: S, levels: &[i8; 16], to: &mut Levels) {
    for q in to.q.chunks_exact_mut(4 * S::LANES) {
        // SAFETY: a chunk is a vector.
        unsafe {
            let index = s.bits(s.load(q.as_ptr().cast()));
            s.store(q.as_mut_ptr().cast(), s.of_bits(s.look_up(levels, index)));
        }
    }
}

#[inline(always)]
fn half<S: Simd>(s: S, low: u8, high: u8) -> f32 {
    s.f16_to_f32(u16::from_le_bytes([low, high]))
}

/// The low nibbles of the first N bytes, then the high ones.
#[inline(always)]
fn nibbles<const N: usize>(p: &[u8], q: &mut [i8], minus: i8) {
    let (Some(p), Some((low, high))) = (p.first_chunk::<N>(), q.split_first_chunk_mut::<N>()) else { return };
    let Some(high) = high.first_chunk_mut::<N>() else { return };
    for i in 0..N {
        low[i] = (p[i] & 15) as i8 - minus;
    }
    for i in 0..N {
        high[i] = (p[i] >> 4) as i8 - minus;
    }
}

/// Bits 2 p and 2 p + 1 of byte 32 h + i as element 128 h + 32 p + i.
#[inline(always)]
fn pairs(p: &[u8], q: &mut [i8; 256], minus: i8) {
    for (p, q) in p.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<128>().0) {
        for i in 0..32 {
            q[i] = (p[i] & 3) as i8 - minus;
            q[32 + i] = (p[i] >> 2 & 3) as i8 - minus;
            q[64 + i] = (p[i] >> 4 & 3) as i8 - minus;
            q[96 + i] = (p[i] >> 6) as i8 - minus;
        }
    }
}

#[inline(always)]
fn q4_0<S: Simd>(s: S, p: &[u8; 18], q: &mut [i8; 32], scale: &mut [f32; 2], _: &mut [f32; 2]) {
    nibbles::<16>(&p[2..], q, 8);
    *scale = [half(s, p[0], p[1]); 2];
}

#[inline(always)]
fn q4_1<S: Simd>(s: S, p: &[u8; 20], q: &mut [i8; 32], scale: &mut [f32; 2], min: &mut [f32; 2]) {
    nibbles::<16>(&p[4..], q, 0);
    *scale = [half(s, p[0], p[1]); 2];
    *min = [-half(s, p[2], p[3]); 2];
}

/// Sets bit `to` of the bytes of `q` where bit `from` of the bytes of `p` is set: eight bytes at a time.
#[inline(always)]
fn set_bits(p: &[u8; 32], from: usize, q: &mut [i8; 32], to: usize) {
    for (p, q) in p.as_chunks::<8>().0.iter().zip(q.as_chunks_mut::<8>().0) {
        let bits = (u64::from_le_bytes(*p) >> from & 0x0101_0101_0101_0101) << to;
        *q = (bits | u64::from_le_bytes(q.map(|q| q as u8))).to_le_bytes().map(|b| b as i8);
    }
}

/// Nibbles with a fifth bit each.
#[inline(always)]
fn fives(p: &[u8], q: &mut [i8; 32], minus: i8) {
    nibbles::<16>(&p[4..20], q, 0);
    for (q, &high) in q.as_chunks_mut::<8>().0.iter_mut().zip(p) {
        let set = grid_bytes::MASKS[high as usize].to_le_bytes();
        for i in 0..8 {
            q[i] = (q[i] | (set[i] & 16) as i8) - minus;
        }
    }
}

#[inline(always)]
fn q5_0<S: Simd>(s: S, p: &[u8; 22], q: &mut [i8; 32], scale: &mut [f32; 2], _: &mut [f32; 2]) {
    fives(&p[2..], q, 16);
    *scale = [half(s, p[0], p[1]); 2];
}

#[inline(always)]
fn q5_1<S: Simd>(s: S, p: &[u8; 24], q: &mut [i8; 32], scale: &mut [f32; 2], min: &mut [f32; 2]) {
    fives(&p[4..], q, 0);
    *scale = [half(s, p[0], p[1]); 2];
    *min = [-half(s, p[2], p[3]); 2];
}

#[inline(always)]
fn q8_0<S: Simd>(s: S, p: &[u8; 34], q: &mut [i8; 32], scale: &mut [f32; 2], _: &mut [f32; 2]) {
    *q = std::array::from_fn(|i| p[2 + i] as i8);
    *scale = [half(s, p[0], p[1]); 2];
}

#[inline(always)]
fn q8_1<S: Simd>(s: S, p: &[u8; 36], q: &mut [i8; 32], scale: &mut [f32; 2], _: &mut [f32; 2]) {
    *q = std::array::from_fn(|i| p[4 + i] as i8);
    *scale = [half(s, p[0], p[1]); 2];
}

#[inline(always)]
fn q8_k<S: Simd>(_: S, p: &[u8; 292], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    *q = std::array::from_fn(|i| p[4 + i] as i8);
    *scale = [f32::from_le_bytes([p[0], p[1], p[2], p[3]]); 16];
}

#[inline(always)]
fn q2_k<S: Simd>(s: S, p: &[u8; 84], q: &mut [i8; 256], scale: &mut [f32; 16], min: &mut [f32; 16]) {
    pairs(&p[16..80], q, 0);
    let (d, dmin) = (half(s, p[80], p[81]), half(s, p[82], p[83]));
    for g in 0..16 {
        scale[g] = d * (p[g] & 15) as f32;
        min[g] = dmin * (p[g] >> 4) as f32;
    }
}

#[inline(always)]
fn q3_k<S: Simd>(s: S, p: &[u8; 110], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    pairs(&p[32..96], q, 0);
    let (high, _) = p.split_first_chunk().unwrap_or((&[0; 32], &[]));
    for (bit, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        set_bits(high, bit, q, 2);
    }
    q.iter_mut().for_each(|q| *q -= 4);
    let d = half(s, p[108], p[109]);
    for g in 0..16 {
        let code = p[96 + g % 8] >> (g / 8 * 4) & 15 | (p[104 + g % 4] >> (g / 4 * 2) & 3) << 4;
        scale[g] = d * (code as i32 - 32) as f32;
    }
}

/// Scales and offsets of the groups of Q4_K and Q5_K, from their first 16 bytes.
#[inline(always)]
fn k_groups<S: Simd>(s: S, p: &[u8], scale: &mut [f32; 16], min: &mut [f32; 16]) {
    let (d, dmin) = (half(s, p[0], p[1]), half(s, p[2], p[3]));
    let word = |at: usize| u32::from_le_bytes([p[at], p[at + 1], p[at + 2], p[at + 3]]);
    let (g0, g1, g2) = (word(4), word(8), word(12));
    let upper = |low: u32, g: u32| low & 0x0f0f_0f0f | g >> 2 & 0x3030_3030;
    let scales = (g0 & 0x3f3f_3f3f) as u64 | (upper(g2, g0) as u64) << 32;
    let mins = (g1 & 0x3f3f_3f3f) as u64 | (upper(g2 >> 4, g1) as u64) << 32;
    let (scales, mins) = (scales.to_le_bytes(), mins.to_le_bytes());
    for g in 0..16 {
        scale[g] = d * scales[g / 2] as f32;
        min[g] = dmin * mins[g / 2] as f32;
    }
}

#[inline(always)]
fn q4_k<S: Simd>(s: S, p: &[u8; 144], q: &mut [i8; 256], scale: &mut [f32; 16], min: &mut [f32; 16]) {
    for (p, q) in p[16..].as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<64>().0) {
        nibbles::<32>(p, q, 0);
    }
    k_groups(s, p, scale, min);
}

#[inline(always)]
fn q5_k<S: Simd>(s: S, p: &[u8; 176], q: &mut [i8; 256], scale: &mut [f32; 16], min: &mut [f32; 16]) {
    for (p, q) in p[48..].as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<64>().0) {
        nibbles::<32>(p, q, 0);
    }
    let (high, _) = p[16..].split_first_chunk().unwrap_or((&[0; 32], &[]));
    for (bit, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        set_bits(high, bit, q, 4);
    }
    k_groups(s, p, scale, min);
}

#[inline(always)]
fn q6_k<S: Simd>(s: S, p: &[u8; 210], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    for (h, q) in q.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        for i in 0..32 {
            let (a, b, high) = (p[64 * h + i], p[64 * h + 32 + i], p[128 + 32 * h + i]);
            q[i] = (a & 15 | high << 4 & 0x30) as i8 - 32;
            q[32 + i] = (b & 15 | high << 2 & 0x30) as i8 - 32;
            q[64 + i] = (a >> 4 | high & 0x30) as i8 - 32;
            q[96 + i] = (b >> 4 | high >> 2 & 0x30) as i8 - 32;
        }
    }
    let d = half(s, p[208], p[209]);
    for g in 0..16 {
        scale[g] = d * (p[192 + g] as i8) as f32;
    }
}

/// Eight bytes.
#[inline(always)]
fn put(q: &mut [i8; 256], run: usize, bytes: u64) {
    q[8 * run..8 * run + 8].copy_from_slice(&bytes.to_le_bytes().map(|b| b as i8));
}

/// The bytes, none of them 0, negative where the bit of the sign is set.
#[inline(always)]
fn signed(bytes: u64, signs: u8) -> u64 {
    let mask = grid_bytes::MASKS[signs as usize];
    (bytes ^ mask).wrapping_add(mask & 0x0101_0101_0101_0101)
}

/// Eight signs from seven: the last makes their number even.
#[inline(always)]
fn eighth(signs: u32) -> u8 {
    let seven = signs as u8 & 127;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// Eight coordinates of IQ1, times 8, shifted.
#[inline(always)]
fn put_iq1(q: &mut [i8; 256], run: usize, point: usize, negative: bool) {
    let bytes = grid_bytes::IQ1[point & 2047].to_le_bytes();
    let shift = if negative { -1 } else { 1 };
    let to = &mut q[8 * run..8 * run + 8];
    bytes.iter().zip(to).for_each(|(&b, q)| *q = b as i8 + shift);
}

#[inline(always)]
fn iq1_s<S: Simd>(s: S, p: &[u8; 50], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    let d = half(s, p[0], p[1]);
    for g in 0..8 {
        let group = u16::from_le_bytes([p[34 + 2 * g], p[35 + 2 * g]]);
        let factor = d * (2 * (group >> 12 & 7) + 1) as f32 * 0.125;
        (scale[2 * g], scale[2 * g + 1]) = (factor, factor);
        for j in 0..4 {
            let high = (group >> (3 * j) & 7) as usize;
            put_iq1(q, 4 * g + j, p[2 + 4 * g + j] as usize | high << 8, group >> 15 == 1);
        }
    }
}

#[inline(always)]
fn iq1_m<S: Simd>(s: S, p: &[u8; 56], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    let word = |i: usize| u16::from_le_bytes([p[48 + 2 * i], p[49 + 2 * i]]);
    let d = s.f16_to_f32(word(0) >> 12 | word(1) >> 12 << 4 | word(2) >> 12 << 8 | word(3) >> 12 << 12);
    for (g, scale) in scale.iter_mut().enumerate() {
        *scale = d * (2 * (word(g / 4) >> (g % 4 * 3) & 7) + 1) as f32 * 0.125;
        for j in 0..2 {
            let high = p[32 + g] >> (4 * j);
            put_iq1(q, 2 * g + j, p[2 * g + j] as usize | (high as usize & 7) << 8, high & 8 != 0);
        }
    }
}

/// Scales of 4 bits, as IQ2 has them: low nibble group 2 i, high nibble group 2 i + 1.
#[inline(always)]
fn iq2_scales(d: f32, p: &[u8], scale: &mut [f32; 16]) {
    for (g, scale) in scale.iter_mut().enumerate() {
        *scale = d * (0.5 + (p[g / 2] >> (g % 2 * 4) & 15) as f32) * 0.25;
    }
}

#[inline(always)]
fn iq2_xxs<S: Simd>(s: S, p: &[u8; 66], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    let d = half(s, p[0], p[1]);
    for (g, p) in p[2..].as_chunks::<8>().0.iter().enumerate() {
        let bits = u32::from_le_bytes([p[4], p[5], p[6], p[7]]);
        let factor = d * (0.5 + (bits >> 28) as f32) * 0.25;
        (scale[2 * g], scale[2 * g + 1]) = (factor, factor);
        for (j, &point) in p[..4].iter().enumerate() {
            put(q, 4 * g + j, signed(grid_bytes::IQ2_XXS[point as usize], eighth(bits >> (7 * j))));
        }
    }
}

#[inline(always)]
fn iq2_xs<S: Simd>(s: S, p: &[u8; 74], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    iq2_scales(half(s, p[0], p[1]), &p[66..], scale);
    for (i, run) in p[2..66].as_chunks::<2>().0.iter().enumerate() {
        let run = u16::from_le_bytes(*run);
        put(q, i, signed(grid_bytes::IQ2_XS[run as usize & 511], eighth(run as u32 >> 9)));
    }
}

#[inline(always)]
fn iq2_s<S: Simd>(s: S, p: &[u8; 82], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    iq2_scales(half(s, p[0], p[1]), &p[74..], scale);
    for i in 0..32 {
        let high = (p[66 + i / 4] >> (i % 4 * 2) & 3) as usize;
        put(q, i, signed(grid_bytes::IQ2_S[p[2 + i] as usize | high << 8], p[34 + i]));
    }
}

#[inline(always)]
fn iq3_xxs<S: Simd>(s: S, p: &[u8; 98], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    let d = half(s, p[0], p[1]);
    for (g, bits) in p[66..].as_chunks::<4>().0.iter().enumerate() {
        let bits = u32::from_le_bytes(*bits);
        let factor = d * (0.5 + (bits >> 28) as f32) * 0.5;
        (scale[2 * g], scale[2 * g + 1]) = (factor, factor);
        for j in 0..4 {
            let run = 4 * g + j;
            let point = |i: usize| grid_bytes::IQ3_XXS[p[2 + 2 * run + i] as usize] as u64;
            put(q, run, signed(point(0) | point(1) << 32, eighth(bits >> (7 * j))));
        }
    }
}

#[inline(always)]
fn iq3_s<S: Simd>(s: S, p: &[u8; 110], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    let d = half(s, p[0], p[1]);
    for (g, scale) in scale.iter_mut().enumerate() {
        *scale = d * (1 + 2 * (p[106 + g / 4] >> (g / 2 % 2 * 4) & 15)) as f32;
    }
    for run in 0..32 {
        let high = p[66 + run / 4] as usize >> (run % 4 * 2);
        let low = grid_bytes::IQ3_S[p[2 + 2 * run] as usize | (high & 1) << 8] as u64;
        let up = grid_bytes::IQ3_S[p[3 + 2 * run] as usize | (high >> 1 & 1) << 8] as u64;
        put(q, run, signed(low | up << 32, p[74 + run]));
    }
}

#[inline(always)]
fn iq4_nl<S: Simd>(s: S, p: &[u8; 18], q: &mut [i8; 32], scale: &mut [f32; 2], _: &mut [f32; 2]) {
    nibbles::<16>(&p[2..], q, 0);
    *scale = [half(s, p[0], p[1]); 2];
}

#[inline(always)]
fn iq4_xs<S: Simd>(s: S, p: &[u8; 136], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    for (p, q) in p[8..].as_chunks::<16>().0.iter().zip(q.as_chunks_mut::<32>().0) {
        nibbles::<16>(p, q, 0);
    }
    let (d, high) = (half(s, p[0], p[1]), u16::from_le_bytes([p[2], p[3]]));
    for (i, scale) in scale.iter_mut().enumerate() {
        let g = i / 2;
        let code = (p[4 + g / 2] >> (g % 2 * 4) & 15) as i32 | ((high >> (2 * g) & 3) as i32) << 4;
        *scale = d * (code - 32) as f32;
    }
}

#[inline(always)]
fn tq1_0<S: Simd>(s: S, p: &[u8; 54], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let digit = |byte: u8, n: usize| ((byte.wrapping_mul(POWERS[n]) as u16 * 3) >> 8) as i8 - 1;
    for n in 0..5 {
        for i in 0..32 {
            q[32 * n + i] = digit(p[i], n);
        }
        for i in 0..16 {
            q[160 + 16 * n + i] = digit(p[32 + i], n);
        }
    }
    for n in 0..4 {
        for i in 0..4 {
            q[240 + 4 * n + i] = digit(p[48 + i], n);
        }
    }
    *scale = [half(s, p[52], p[53]); 16];
}

#[inline(always)]
fn tq2_0<S: Simd>(s: S, p: &[u8; 66], q: &mut [i8; 256], scale: &mut [f32; 16], _: &mut [f32; 16]) {
    pairs(&p[..64], q, 1);
    *scale = [half(s, p[64], p[65]); 16];
}

#[inline(always)]
fn mxfp4<S: Simd>(_: S, p: &[u8; 17], q: &mut [i8; 32], scale: &mut [f32; 2], _: &mut [f32; 2]) {
    nibbles::<16>(&p[1..], q, 0);
    *scale = [mx_power(p[0]); 2];
}

#[inline(always)]
fn nvfp4<S: Simd>(_: S, p: &[u8; 36], q: &mut [i8; 64], scale: &mut [f32; 4], _: &mut [f32; 4]) {
    for (g, (p8, q)) in p[4..].as_chunks::<8>().0.iter().zip(q.as_chunks_mut::<16>().0).enumerate() {
        nibbles::<8>(p8, q, 0);
        scale[g] = half_scale(p[g]);
    }
}

#[inline(always)]
fn q1_0<S: Simd>(s: S, p: &[u8; 18], q: &mut [i8; 128], scale: &mut [f32; 8], _: &mut [f32; 8]) {
    for (&p, q) in p[2..].iter().zip(q.as_chunks_mut::<8>().0) {
        // 1 where the bit is set, else -1.
        *q = (!grid_bytes::MASKS[p as usize] | 0x0101_0101_0101_0101).to_le_bytes().map(|b| b as i8);
    }
    *scale = [half(s, p[0], p[1]); 8];
}
