//! Runs of elements of any dtype to f32: plain types, and the block formats through [`unpack`], or in vectors where that was
//! measured to be faster. Values are exactly those of `quant::decode`.

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
    s.outline(
        #[inline(always)]
        // SAFETY: the caller's promise.
        || unsafe { decode_here(s, dtype, from, out, n) },
    )
}

#[inline(always)]
unsafe fn decode_here<S: Simd>(s: S, dtype: DType, from: *const u8, out: *mut f32, n: usize) {
    let (elements, bytes) = dtype.block();
    // SAFETY: the caller's promise; blocks are `bytes` long.
    unsafe {
        macro_rules! blocks {
            ($f:ident) => {
                for i in 0..n / elements {
                    $f(s, from.add(i * bytes), out.add(i * elements));
                }
            };
        }
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => row::read(s, dtype, from, 1, out, n),
            DType::I8 | DType::U8 => integers(s, dtype == DType::I8, from, out, n),
            DType::Q8_0 => blocks!(q8_0),
            DType::Q4_0 => blocks!(q4_0),
            DType::Q4_K => blocks!(q4_k),
            DType::Q6_K => blocks!(q6_k),
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

#[inline(always)]
unsafe fn half_at<S: Simd>(s: S, p: *const u8) -> f32 {
    // SAFETY: the caller has two bytes there.
    s.f16_to_f32(u16::from_le_bytes(unsafe { p.cast::<[u8; 2]>().read() }))
}

#[inline(always)]
unsafe fn q8_0<S: Simd>(s: S, p: *const u8, out: *mut f32) {
    // SAFETY: a block is 34 bytes and 32 elements.
    unsafe {
        let d = s.splat(half_at(s, p));
        for i in (0..32).step_by(S::LANES) {
            s.store(out.add(i), s.mul(s.float(s.load_i8(p.add(2 + i).cast())), d));
        }
    }
}

#[inline(always)]
unsafe fn q4_0<S: Simd>(s: S, p: *const u8, out: *mut f32) {
    // SAFETY: a block is 18 bytes and 32 elements.
    unsafe {
        let (d, eight) = (s.splat(half_at(s, p)), s.splat_i(8));
        for i in (0..16).step_by(S::LANES) {
            let q = s.load_u8(p.add(2 + i));
            let (low, high) = (s.and(q, s.splat_i(15)), s.shr::<4>(q));
            s.store(out.add(i), s.mul(s.float(s.sub_i(low, eight)), d));
            s.store(out.add(16 + i), s.mul(s.float(s.sub_i(high, eight)), d));
        }
    }
}

#[inline(always)]
unsafe fn q4_k<S: Simd>(s: S, p: *const u8, out: *mut f32) {
    // SAFETY: a block is 144 bytes and 256 elements.
    unsafe {
        let (d, dmin) = (half_at(s, p), half_at(s, p.add(2)));
        let groups = p.add(4).cast::<[u8; 12]>().read();
        for c in 0..4 {
            let (s0, m0) = q4_k_group(&groups, 2 * c);
            let (s1, m1) = q4_k_group(&groups, 2 * c + 1);
            let (s0, s1) = (s.splat(d * s0), s.splat(d * s1));
            let (m0, m1) = (s.splat(dmin * m0), s.splat(dmin * m1));
            for i in (0..32).step_by(S::LANES) {
                let q = s.load_u8(p.add(16 + 32 * c + i));
                let (low, high) = (s.float(s.and(q, s.splat_i(15))), s.float(s.shr::<4>(q)));
                s.store(out.add(64 * c + i), s.sub(s.mul(s0, low), m0));
                s.store(out.add(64 * c + 32 + i), s.sub(s.mul(s1, high), m1));
            }
        }
    }
}

/// Scale and offset of a group of 32.
#[inline(always)]
fn q4_k_group(g: &[u8; 12], j: usize) -> (f32, f32) {
    let (s, m) = if j < 4 {
        (g[j] & 63, g[j + 4] & 63)
    } else {
        (g[j + 4] & 15 | g[j - 4] >> 6 << 4, g[j + 4] >> 4 | g[j] >> 6 << 4)
    };
    (s as f32, m as f32)
}

#[inline(always)]
unsafe fn q6_k<S: Simd>(s: S, p: *const u8, out: *mut f32) {
    // SAFETY: a block is 210 bytes and 256 elements: low[128], high[64], scales[16], d.
    unsafe {
        let d = half_at(s, p.add(208));
        for half in 0..2 {
            for i in (0..32).step_by(S::LANES) {
                let scale = |part: usize| s.splat(d * *p.add(192 + 8 * half + 2 * part + i / 16).cast::<i8>() as f32);
                let (a, b) = (s.load_u8(p.add(64 * half + i)), s.load_u8(p.add(64 * half + 32 + i)));
                let high = s.load_u8(p.add(128 + 32 * half + i));
                let (four, two) = (s.splat_i(15), s.splat_i(0x30));
                let q = [
                    s.or(s.and(a, four), s.and(s.shl::<4>(high), two)),
                    s.or(s.and(b, four), s.and(s.shl::<2>(high), two)),
                    s.or(s.shr::<4>(a), s.and(high, two)),
                    s.or(s.shr::<4>(b), s.and(s.shr::<2>(high), two)),
                ];
                let to = out.add(128 * half + i);
                let bias = s.splat_i(32);
                s.store(to, s.mul(scale(0), s.float(s.sub_i(q[0], bias))));
                s.store(to.add(32), s.mul(scale(1), s.float(s.sub_i(q[1], bias))));
                s.store(to.add(64), s.mul(scale(2), s.float(s.sub_i(q[2], bias))));
                s.store(to.add(96), s.mul(scale(3), s.float(s.sub_i(q[3], bias))));
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
