//! Runs of elements of any dtype to f32: plain types, and the block formats through [`unpack`]. Values are exactly those of
//! `quant::decode`.
//!
//! One thread, AVX-512, ns an element: Q8_0, Q4_0, Q4_K and Q6_K 0.12 to 0.15, as much as with code of their own, which there was
//! (0.13 to 0.18); the others 0.12 to 0.31, NVFP4 0.41. Floats of 8 bits: 0.23 with the
//! product of one row.

use super::{
    simd::{Simd, row},
    unpack::{Levels, unpack},
};
use crate::{dtype::DType, quant};

/// Decodes `n` consecutive elements, whole blocks of a quantized type. A dtype that has no decoder gives zeros.
///
/// # Safety
/// `from` is readable for the elements, `out` writable for `n`, and the two do not overlap.
#[inline(always)]
pub(crate) unsafe fn decode<S: Simd>(s: S, dtype: DType, from: *const u8, out: *mut f32, n: usize) {
    let s = s.plain();
    s.outline(
        #[inline(always)]
        // SAFETY: the caller's promise.
        || unsafe { decode_here(s, dtype, from, out, n) },
    )
}

#[inline(always)]
unsafe fn decode_here<S: Simd>(s: S, dtype: DType, from: *const u8, out: *mut f32, n: usize) {
    let (elements, bytes) = dtype.block();
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => row::read(s, dtype, from, 1, out, n),
            DType::I8 | DType::U8 => integers(s, dtype == DType::I8, from, out, n),
            DType::F8E4M3 | DType::F8E5M2 => eights(s, dtype == DType::F8E4M3, from, out, n),
            _ if elements > 1 => quantized(s, dtype, from, out, n),
            _ => any(dtype, from, n * bytes, out, n),
        }
    }
}

/// As [`decode`], with the elements `stride` apart; 1 for quantized types.
///
/// # Safety
/// As for [`decode`].
#[inline(always)]
pub(crate) unsafe fn decode_strided<S: Simd>(
    s: S,
    dtype: DType,
    from: *const u8,
    stride: usize,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if stride == 1 {
            decode(s, dtype, from, out, n);
        } else if dtype.is_float() {
            s.outline(
                #[inline(always)]
                || row::read(s, dtype, from, stride, out, n),
            )
        } else {
            let (_, bytes) = dtype.block();
            (0..n).for_each(|i| any(dtype, from.add(i * stride * bytes), bytes, out.add(i), 1));
        }
    }
}

/// The portable decoder.
unsafe fn any(dtype: DType, from: *const u8, bytes: usize, out: *mut f32, n: usize) {
    // SAFETY: the caller's promise, as for `decode`.
    let (bytes, out) = unsafe { (std::slice::from_raw_parts(from, bytes), std::slice::from_raw_parts_mut(out, n)) };
    if quant::decode(dtype, bytes, out).is_err() {
        out.fill(0.0);
    }
}

#[inline(always)]
unsafe fn integers<S: Simd>(s: S, signed: bool, from: *const u8, out: *mut f32, n: usize) {
    // SAFETY: indices stay below n.
    unsafe {
        let mut i = 0;
        while i + S::LANES <= n {
            let q = if signed { s.load_i8(from.add(i).cast()) } else { s.load_u8(from.add(i)) };
            s.store(out.add(i), s.float(q));
            i += S::LANES;
        }
        while i < n {
            let q = *from.add(i);
            *out.add(i) = if signed { q as i8 as f32 } else { q as f32 };
            i += 1;
        }
    }
}

/// Floats of 8 bits, whose fields are put where those of an f16 are: e5m2 is one without its low byte, the exponent of e4m3 has a bias less by 8.
#[inline(always)]
unsafe fn eights<S: Simd>(s: S, e4m3: bool, from: *const u8, out: *mut f32, n: usize) {
    const RUN: usize = 64;
    let (factor, nan) = (s.splat(256.0), s.splat(480.0));
    let mut bits = [0u16; RUN];
    for at in (0..n).step_by(RUN) {
        let len = RUN.min(n - at);
        // SAFETY: indices stay below n; the buffer holds a run, which vectors divide.
        unsafe {
            let bytes = std::slice::from_raw_parts(from.add(at), len);
            if e4m3 {
                bits.iter_mut().zip(bytes).for_each(|(to, &b)| *to = (b as u16 & 0x80) << 8 | (b as u16 & 0x7f) << 7);
            } else {
                bits.iter_mut().zip(bytes).for_each(|(to, &b)| *to = (b as u16) << 8);
            }
            for i in (0..len).step_by(S::LANES) {
                let mut x = s.load_f16(bits.as_ptr().add(i));
                if e4m3 {
                    x = s.mul(x, factor);
                    // All ones, but for the sign, is no number.
                    x = s.select(s.eq(s.abs(x), nan), s.splat(f32::NAN), x);
                }
                if i + S::LANES <= len {
                    s.store(out.add(at + i), x);
                } else {
                    s.store_partial(out.add(at + i), x, len - i);
                }
            }
        }
    }
}

/// Whole blocks of a quantized type, 256 elements at a time.
#[inline(always)]
unsafe fn quantized<S: Simd>(s: S, dtype: DType, from: *const u8, out: *mut f32, n: usize) {
    let (elements, bytes) = dtype.block();
    let mut levels = Levels::ZERO;
    for at in (0..n).step_by(256) {
        let count = (n - at).min(256);
        // SAFETY: the caller has n elements of both; groups of 16 divide the count, vectors a group.
        unsafe {
            let blocks = std::slice::from_raw_parts(from.add(at / elements * bytes), count / elements * bytes);
            unpack(s, dtype, blocks, &mut levels);
            for g in 0..count / 16 {
                let (scale, min) = (s.splat(levels.scale[g]), s.splat(levels.min[g]));
                for i in (16 * g..16 * g + 16).step_by(S::LANES) {
                    let q = s.float(s.load_i8(levels.q.as_ptr().add(i)));
                    s.store(out.add(at + i), s.sub(s.mul(scale, q), min));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cpu::simd::{Isa, simd},
        op::Rng,
    };

    #[test]
    fn every_dtype_as_the_portable_decoder() {
        for &dtype in DType::ALL.iter().filter(|&&d| d != DType::I32) {
            let (elements, size) = dtype.block();
            let n = if elements > 1 { 256 * 2 + elements } else { 77 };
            let mut rng = Rng(7);
            let bytes: Vec<u8> = (0..n / elements * size).map(|_| rng.next() as u8).collect();
            let mut want = vec![0f32; n];
            quant::decode(dtype, &bytes, &mut want).unwrap();
            for isa in Isa::available() {
                let mut got = vec![0f32; n];
                // SAFETY: both hold n elements.
                simd!(isa, s => unsafe { decode(s, dtype, bytes.as_ptr(), got.as_mut_ptr(), n) });
                let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                assert!(want.iter().zip(&got).all(|(&a, &b)| same(a, b)), "{dtype} on {}", isa.name());
            }
        }
    }
}
