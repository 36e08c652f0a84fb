//! Runs of f32 to elements of any dtype: floats in vectors, and so the two formats of caches, q8_0 and q4_0; the rest as `quant::encode` does.
//! Bytes are exactly those of `quant::encode`.

use super::simd::{Simd, row};
use crate::{dtype::DType, quant};

/// Encodes `n` numbers (whole blocks of a quantized type) into elements that lie `stride` apart; 1 for quantized types.
///
/// # Safety
/// `from` is readable for `n`, the elements at `to` are writable, and the two do not overlap.
#[inline(always)]
pub(crate) unsafe fn encode<S: Simd>(s: S, dtype: DType, from: *const f32, to: *mut u8, stride: usize, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => row::write(s, dtype, from, to, stride, n),
            DType::Q8_0 => s.outline(
                #[inline(always)]
                || blocks::<S, 127, 34>(s, from, to, n),
            ),
            DType::Q4_0 => s.outline(
                #[inline(always)]
                || blocks::<S, 8, 18>(s, from, to, n),
            ),
            _ => any(dtype, from, to, stride, n),
        }
    }
}

/// # Safety
/// As for [`encode`].
#[inline(never)]
unsafe fn any(dtype: DType, from: *const f32, to: *mut u8, stride: usize, n: usize) {
    let (elements, pieces) = if stride == 1 { (n, 1) } else { (1, n) };
    let bytes = dtype.bytes(elements).unwrap_or(0);
    for i in 0..pieces {
        // SAFETY: the caller's promise; spread elements are pieces of their own.
        let (from, to) = unsafe {
            let to = to.add(i * stride * bytes);
            (std::slice::from_raw_parts(from.add(i), elements), std::slice::from_raw_parts_mut(to, bytes))
        };
        // Whole blocks of a dtype that every build knows: nothing to refuse.
        quant::encode(dtype, from, to).unwrap_or_else(|e| unreachable!("{e}"));
    }
}

/// Blocks of 32 of Q8_0 (TOP 127) or Q4_0 (TOP 8), of BYTES bytes.
#[inline(always)]
unsafe fn blocks<S: Simd, const TOP: i32, const BYTES: usize>(s: S, from: *const f32, to: *mut u8, n: usize) {
    for b in 0..n / 32 {
        let mut q = [0i8; 32];
        // SAFETY: the caller has the block; vectors divide it.
        unsafe {
            let (x, to) = (from.add(32 * b), to.add(BYTES * b));
            let (mut high, mut low, mut zero) = (s.load(x), s.neg(s.load(x)), s.zero());
            let mut i = 0;
            while i < 32 {
                let x = s.load(x.add(i));
                (high, low) = (s.max(x, high), s.max(s.neg(x), low));
                zero = s.fma(x, s.zero(), zero);
                i += S::LANES;
            }
            if s.sum(zero).is_nan() {
                to.cast::<[u8; 2]>().write(half::f16::NAN.to_le_bytes());
                to.add(2).write_bytes(0, BYTES - 2);
                continue;
            }
            let (high, low) = (s.max_lane(high), s.max_lane(low));
            // The number of the largest magnitude, the first of equals.
            let largest = if high > low {
                high
            } else if low > high {
                -low
            } else if high == 0.0 {
                0.0
            } else {
                let mut i = 0;
                while i < 31 && (*x.add(i)).abs() != high {
                    i += 1;
                }
                *x.add(i)
            };
            let d = if TOP == 8 { largest / -8.0 } else { largest.abs() / 127.0 };
            let inverse = if (1.0 / d).is_finite() { 1.0 / d } else { 0.0 };
            to.cast::<[u8; 2]>().write(half::f16::from_f32(d).to_le_bytes());
            numbers::<S, TOP>(s, x, inverse, q.as_mut_ptr());
            let mut i = 0;
            while i < BYTES - 2 {
                *to.add(2 + i) = if TOP == 8 { (q[i] | q[i + 16] << 4) as u8 } else { q[i] as u8 };
                i += 1;
            }
        }
    }
}

/// The block's whole numbers: of Q8_0 the nearest, halves away from zero, of Q4_0 those below `x / d + 8.5`, at most 15.
#[inline(always)]
unsafe fn numbers<S: Simd, const TOP: i32>(s: S, x: *const f32, inverse: f32, to: *mut i8) {
    let (mut i, mut v) = (0, 0);
    let mut four = [s.splat_i(0); 4];
    while i < 32 {
        // SAFETY: vectors divide the block.
        let x = s.mul(unsafe { s.load(x.add(i)) }, s.splat(inverse));
        four[v] = s.to_i(if TOP == 8 {
            let x = s.add(x, s.splat(8.5));
            let near = s.round(x);
            s.min(s.select(s.lt(x, near), s.sub(near, s.splat(1.0)), near), s.splat(15.0))
        } else {
            let (near, half) = (s.round(x), s.copysign(s.splat(0.5), x));
            s.select(s.eq(s.sub(x, near), half), s.add(near, s.add(half, half)), near)
        });
        (i, v) = (i + S::LANES, v + 1);
        // SAFETY: as above, for bytes.
        unsafe {
            if 4 * S::LANES > 32 {
                v = 0;
                s.store_i8(to.add(i - S::LANES), four[0]);
            } else if v == 4 {
                v = 0;
                s.store(to.add(i - 4 * S::LANES).cast(), s.of_bits(s.narrow(four)));
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

    /// Blocks of halves, of equal magnitudes in both orders, of zeros, subnormals, the largest numbers, NaN and infinities.
    #[test]
    fn the_formats_of_caches_as_the_portable_encoder() {
        let mut rng = Rng(5);
        let mut values: Vec<f32> = Vec::new();
        for scale in [1.0, 1e-3, 1e-30, 1e-38, 1e-40, 1e-44, 65504.0 * 127.0, 1e30, 3e38] {
            values.extend((0..32 * 40).map(|_| ((rng.normal() as f32) * scale).clamp(f32::MIN, f32::MAX)));
        }
        for top in [127.0f32, 8.0, -8.0, 16.0, -254.0, 0.0, -0.0, 1.5] {
            values.extend((0..32 * 8).map(|i| match i % 32 {
                0 if i % 64 == 0 => top,
                5 => -top,
                9 => top,
                _ => (rng.next() % 255) as f32 / 2.0 % (top.abs() + 1e-9),
            }));
        }
        values.extend([0.0, -0.0].iter().flat_map(|&zero| [zero; 32]));
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45] {
            values.extend((0..32 * 32).map(|i| if i / 32 == i % 32 { special } else { rng.normal() as f32 }));
            values.extend([special; 32]);
        }
        for dtype in [DType::Q8_0, DType::Q4_0] {
            let mut want = vec![0; dtype.bytes(values.len()).unwrap()];
            quant::encode(dtype, &values, &mut want).unwrap();
            for isa in Isa::available() {
                let mut got = vec![0xaa; want.len()];
                // SAFETY: both hold the values.
                simd!(isa, s => unsafe { encode(s, dtype, values.as_ptr(), got.as_mut_ptr(), 1, values.len()) });
                let bytes = dtype.block().1;
                for (b, (want, got)) in want.chunks(bytes).zip(got.chunks(bytes)).enumerate() {
                    assert_eq!(want, got, "{dtype} on {}: {:?}", isa.name(), &values[32 * b..][..32]);
                }
            }
        }
    }
}
